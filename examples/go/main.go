// A little blob store in Go that blobferry can replicate from and to, in memory.
//
//	little-store -listen 127.0.0.1:7091
//
// It shows what a store needs, and stands among the peers that the tests speak to: with grpc-go's own rules for the pings of
// clients, and with connections that it ages (-max-age).
package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"regexp"
	"sort"
	"sync"
	"syscall"
	"time"

	pb "github.com/blobferry/blobferry/gen/go/blobferry/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	chunkBytes = 256 << 10 // in a message
	pageRefs   = 1000      // in a message
	maxRefs    = 10000     // in a StatBlobs request
)

var sha256Ref = regexp.MustCompile("^sha256-[0-9a-f]{64}$")

// fail makes a status with a stable reason.
func fail(code codes.Code, reason, format string, args ...any) error {
	made, err := status.Newf(code, format, args...).WithDetails(&errdetails.ErrorInfo{Domain: "blobferry.v1", Reason: reason})
	if err != nil {
		return status.Errorf(code, format, args...)
	}
	return made.Err()
}

type store struct {
	pb.UnimplementedBlobReceiverServiceServer
	pb.UnimplementedBlobReaderServiceServer
	id    string
	delay time.Duration
	mutex sync.RWMutex
	blobs map[string][]byte
}

func (s *store) GetPeerInfo(context.Context, *pb.GetPeerInfoRequest) (*pb.GetPeerInfoResponse, error) {
	abilities := []pb.Ability{pb.Ability_ABILITY_STAT, pb.Ability_ABILITY_FETCH, pb.Ability_ABILITY_ENUMERATE, pb.Ability_ABILITY_REPLACE}
	info := &pb.PeerInfo{
		StoreId:         s.id,
		Kind:            pb.PeerKind_PEER_KIND_STORE,
		Version:         "little-store (Go) 1",
		DigestFunctions: []string{"sha256"},
		Abilities:       abilities,
	}
	return &pb.GetPeerInfoResponse{PeerInfo: info}, nil
}

func (s *store) ReceiveBlob(stream grpc.ClientStreamingServer[pb.ReceiveBlobRequest, pb.ReceiveBlobResponse]) error {
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	header := first.GetHeader()
	if header == nil {
		return fail(codes.InvalidArgument, "HEADER_MISSING", "the first message must be a header")
	}
	if !sha256Ref.MatchString(header.Ref) {
		return fail(codes.InvalidArgument, "INVALID_REF", "header.ref is not sha256-<64 lowercase hex digits>: %.80q", header.Ref)
	}
	digest, bytes := sha256.New(), []byte{}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err // cut: nothing is kept
		}
		chunk, isChunk := message.Part.(*pb.ReceiveBlobRequest_Chunk)
		switch {
		case isChunk:
			digest.Write(chunk.Chunk)
			bytes = append(bytes, chunk.Chunk...)
		case message.Part == nil:
			return fail(codes.InvalidArgument, "MESSAGE_EMPTY", "a message has neither header nor chunk")
		default:
			return fail(codes.InvalidArgument, "HEADER_REPEATED", "a second header came")
		}
		if header.SizeBytes != nil && uint64(len(bytes)) > *header.SizeBytes {
			return fail(codes.InvalidArgument, "SIZE_MISMATCH", "more than the stated %d bytes came", *header.SizeBytes)
		}
	}
	size := uint64(len(bytes))
	if header.SizeBytes != nil && size < *header.SizeBytes {
		return fail(codes.InvalidArgument, "SIZE_MISMATCH", "%d of the stated %d bytes came", size, *header.SizeBytes)
	}
	if actual := "sha256-" + hex.EncodeToString(digest.Sum(nil)); actual != header.Ref {
		return fail(codes.InvalidArgument, "DIGEST_MISMATCH", "the bytes are those of %s", actual)
	}
	time.Sleep(s.delay)
	s.mutex.Lock()
	_, held := s.blobs[header.Ref]
	if !held || header.Replace {
		s.blobs[header.Ref] = bytes
	}
	s.mutex.Unlock()
	return stream.SendAndClose(&pb.ReceiveBlobResponse{
		Ref: header.Ref, SizeBytes: &size, Disposition: pb.Disposition_DISPOSITION_STORED, WasNew: !held,
	})
}

func (s *store) StatBlobs(_ context.Context, request *pb.StatBlobsRequest) (*pb.StatBlobsResponse, error) {
	if len(request.Refs) > maxRefs {
		return nil, fail(codes.InvalidArgument, "TOO_MANY_ITEMS", "at most %d refs in one request", maxRefs)
	}
	answer := &pb.StatBlobsResponse{}
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	for at, ref := range request.Refs {
		if !sha256Ref.MatchString(ref) {
			return nil, fail(codes.InvalidArgument, "INVALID_REF", "refs[%d] is not sha256-<64 lowercase hex digits>: %.80q", at, ref)
		}
		if blob, held := s.blobs[ref]; held {
			size := uint64(len(blob))
			answer.Blobs = append(answer.Blobs, &pb.BlobMeta{Ref: ref, SizeBytes: &size})
		}
	}
	return answer, nil
}

func (s *store) FetchBlob(request *pb.FetchBlobRequest, stream grpc.ServerStreamingServer[pb.FetchBlobResponse]) error {
	if !sha256Ref.MatchString(request.Ref) {
		return fail(codes.InvalidArgument, "INVALID_REF", "ref is not sha256-<64 lowercase hex digits>: %.80q", request.Ref)
	}
	s.mutex.RLock()
	blob, held := s.blobs[request.Ref]
	s.mutex.RUnlock()
	if !held {
		return fail(codes.NotFound, "BLOB_MISSING", "the store does not hold %s", request.Ref)
	}
	size := uint64(len(blob))
	if request.Offset > size {
		return fail(codes.OutOfRange, "OFFSET_OUT_OF_RANGE", "offset %d lies behind the blob's %d bytes", request.Offset, size)
	}
	rest := blob[request.Offset:]
	if request.Length != nil && *request.Length < uint64(len(rest)) {
		rest = rest[:*request.Length]
	}
	header := &pb.FetchBlobResponse_Header{Header: &pb.FetchBlobHeader{Ref: request.Ref, SizeBytes: &size}}
	if err := stream.Send(&pb.FetchBlobResponse{Part: header}); err != nil {
		return err
	}
	for len(rest) > 0 {
		chunk := rest[:min(chunkBytes, len(rest))]
		rest = rest[len(chunk):]
		if err := stream.Send(&pb.FetchBlobResponse{Part: &pb.FetchBlobResponse_Chunk{Chunk: chunk}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) EnumerateBlobs(request *pb.EnumerateBlobsRequest, stream grpc.ServerStreamingServer[pb.EnumerateBlobsResponse]) error {
	s.mutex.RLock()
	metas := []*pb.BlobMeta{}
	for ref, blob := range s.blobs {
		if ref > request.After && (request.Until == "" || ref <= request.Until) {
			size := uint64(len(blob))
			metas = append(metas, &pb.BlobMeta{Ref: ref, SizeBytes: &size})
		}
	}
	s.mutex.RUnlock()
	sort.Slice(metas, func(i, j int) bool { return metas[i].Ref < metas[j].Ref })
	complete := request.Limit == 0 || uint64(len(metas)) <= request.Limit
	if !complete {
		metas = metas[:request.Limit]
	}
	count := uint64(len(metas))
	for len(metas) > pageRefs {
		if err := stream.Send(&pb.EnumerateBlobsResponse{Blobs: metas[:pageRefs]}); err != nil {
			return err
		}
		metas = metas[pageRefs:]
	}
	return stream.Send(&pb.EnumerateBlobsResponse{Blobs: metas, End: &pb.EnumerateEnd{Count: &count, Complete: &complete}})
}

func main() {
	listen := flag.String("listen", "127.0.0.1:7091", "where to listen; port 0 takes a free one")
	maxAge := flag.Duration("max-age", 0, "how long a connection lives; 0: for ever")
	delay := flag.Duration("confirm-after", 0, "how long to wait before a blob is confirmed")
	flag.Parse()
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		log.Fatal(err)
	}
	s := &store{id: hex.EncodeToString(id), delay: *delay, blobs: map[string][]byte{}}

	// Every answer says which store gives it: an address may lead to several.
	name := metadata.Pairs("blobferry-store-id", s.id)
	unary := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := grpc.SetHeader(ctx, name); err != nil {
			return nil, err
		}
		return next(ctx, request)
	}
	streaming := func(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if err := stream.SetHeader(name); err != nil {
			return err
		}
		return next(server, stream)
	}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(unary),
		grpc.StreamInterceptor(streaming),
		// grpc-go's own: a client that pings more often than every five minutes is thrown out.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Minute}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: *maxAge}),
	)
	pb.RegisterBlobReceiverServiceServer(server, s)
	pb.RegisterBlobReaderServiceServer(server, s)
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	go func() {
		<-stop.Done()
		server.Stop()
	}()
	fmt.Printf("little store %s listens on http://%s\n", s.id, listener.Addr())
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
