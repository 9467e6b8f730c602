package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"syscall"
	"time"

	pb "github.com/blobferry/blobferry/examples/go/gen/blobferryv1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
)

const (
	chunkBytes = 256 << 10 // bytes of a blob in a message
	pageRefs   = 1000      // blobs of a listing in a message
	maxRefs    = 10000     // refs in a StatBlobs request
	maxBound   = 1024      // characters of a listing's bounds
)

// A service answers the two services of a store. What it leaves out, the packed calls, is not among its abilities.
type service struct {
	pb.UnimplementedBlobReceiverServiceServer
	pb.UnimplementedBlobReaderServiceServer
	blobs        *folder
	confirmAfter time.Duration
}

// fail makes an error with the stable reason by which clients decide what to do, and the field that is wrong, if one is.
func fail(code codes.Code, reason, field, format string, args ...any) error {
	message := fmt.Sprintf(format, args...)
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: "blobferry.v1", Reason: reason}}
	if field != "" {
		violation := &errdetails.BadRequest_FieldViolation{Field: field, Description: message}
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{violation}})
	}
	made, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		return status.Error(code, message)
	}
	return made.Err()
}

func invalidRef(field, ref string) error {
	known := slices.Sorted(maps.Keys(functions))
	return fail(codes.InvalidArgument, "INVALID_REF", field,
		"%s is not <function>-<lowercase hex digest> with one of %v: %.80q", field, known, ref)
}

// failed is the error for what the disk answered.
func failed(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fail(codes.ResourceExhausted, "NO_SPACE", "", "the disk has no room: %v", err)
	}
	return fail(codes.Internal, "STORE_FAILED", "", "the disk failed: %v", err)
}

func (s *service) GetPeerInfo(context.Context, *pb.GetPeerInfoRequest) (*pb.GetPeerInfoResponse, error) {
	return &pb.GetPeerInfoResponse{PeerInfo: &pb.PeerInfo{
		StoreId:         s.blobs.id,
		Kind:            pb.PeerKind_PEER_KIND_STORE,
		Version:         "little-store (Go) 1",
		DigestFunctions: slices.Sorted(maps.Keys(functions)),
		Abilities: []pb.Ability{
			pb.Ability_ABILITY_STAT, pb.Ability_ABILITY_ENUMERATE, pb.Ability_ABILITY_FETCH, pb.Ability_ABILITY_REPLACE,
		},
	}}, nil
}

func (s *service) ReceiveBlob(stream grpc.ClientStreamingServer[pb.ReceiveBlobRequest, pb.ReceiveBlobResponse]) error {
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	header := first.GetHeader()
	if header == nil {
		return fail(codes.InvalidArgument, "HEADER_MISSING", "", "the first message must be a header")
	}
	digest := digestOf(header.Ref)
	if digest == nil {
		return invalidRef("header.ref", header.Ref)
	}
	draft, err := s.blobs.create()
	if err != nil {
		return failed(err)
	}
	// Whatever ends this call before the blob is kept leaves nothing behind.
	defer draft.discard()
	var size uint64
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break // The client's half-close: it has sent all that it wanted to.
		}
		if err != nil {
			return err // Cut or cancelled.
		}
		chunk, isChunk := message.Part.(*pb.ReceiveBlobRequest_Chunk)
		switch {
		case message.Part == nil:
			return fail(codes.InvalidArgument, "MESSAGE_EMPTY", "", "a message has neither header nor chunk")
		case !isChunk:
			return fail(codes.InvalidArgument, "HEADER_REPEATED", "", "a second header came")
		}
		size += uint64(len(chunk.Chunk))
		if header.SizeBytes != nil && size > *header.SizeBytes {
			return fail(codes.InvalidArgument, "SIZE_MISMATCH", "", "more than the stated %d bytes came", *header.SizeBytes)
		}
		digest.Write(chunk.Chunk)
		if _, err := draft.Write(chunk.Chunk); err != nil {
			return failed(err)
		}
	}
	if header.SizeBytes != nil && size < *header.SizeBytes {
		return fail(codes.InvalidArgument, "SIZE_MISMATCH", "", "%d of the stated %d bytes came", size, *header.SizeBytes)
	}
	if actual := refOf(digest, header.Ref); actual != header.Ref {
		return fail(codes.InvalidArgument, "DIGEST_MISMATCH", "", "the bytes are those of %s", actual)
	}
	wasNew, err := s.blobs.keep(draft, header.Ref, header.Replace)
	if err != nil {
		return failed(err)
	}
	time.Sleep(s.confirmAfter)
	return stream.SendAndClose(&pb.ReceiveBlobResponse{
		Ref: header.Ref, SizeBytes: &size, Disposition: pb.Disposition_DISPOSITION_STORED, WasNew: wasNew,
	})
}

func (s *service) StatBlobs(_ context.Context, request *pb.StatBlobsRequest) (*pb.StatBlobsResponse, error) {
	if len(request.Refs) > maxRefs {
		return nil, fail(codes.InvalidArgument, "TOO_MANY_ITEMS", "refs", "at most %d refs in one request", maxRefs)
	}
	answer := &pb.StatBlobsResponse{}
	for at, ref := range request.Refs {
		if !isRef(ref) {
			return nil, invalidRef(fmt.Sprintf("refs[%d]", at), ref)
		}
		size, held, err := s.blobs.size(ref)
		if err != nil {
			return nil, failed(err)
		}
		if held {
			answer.Blobs = append(answer.Blobs, &pb.BlobMeta{Ref: ref, SizeBytes: &size})
		}
	}
	return answer, nil
}

func (s *service) FetchBlob(request *pb.FetchBlobRequest, stream grpc.ServerStreamingServer[pb.FetchBlobResponse]) error {
	if !isRef(request.Ref) {
		return invalidRef("ref", request.Ref)
	}
	file, err := s.blobs.open(request.Ref)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(codes.NotFound, "BLOB_MISSING", "", "the store does not hold %s", request.Ref)
	}
	if err != nil {
		return failed(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return failed(err)
	}
	size := uint64(info.Size())
	if request.Offset > size {
		return fail(codes.OutOfRange, "OFFSET_OUT_OF_RANGE", "", "offset %d lies behind the blob's %d bytes", request.Offset, size)
	}
	header := &pb.FetchBlobResponse_Header{Header: &pb.FetchBlobHeader{Ref: request.Ref, SizeBytes: &size}}
	if err := stream.Send(&pb.FetchBlobResponse{Part: header}); err != nil {
		return err
	}
	left := size - request.Offset
	if request.Length != nil {
		left = min(left, *request.Length)
	}
	if _, err := file.Seek(int64(request.Offset), io.SeekStart); err != nil {
		return failed(err)
	}
	for left > 0 {
		chunk := make([]byte, min(chunkBytes, left)) // A new one each time: what was sent belongs to gRPC.
		if _, err := io.ReadFull(file, chunk); err != nil {
			return failed(err)
		}
		left -= uint64(len(chunk))
		if err := stream.Send(&pb.FetchBlobResponse{Part: &pb.FetchBlobResponse_Chunk{Chunk: chunk}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) EnumerateBlobs(request *pb.EnumerateBlobsRequest, stream grpc.ServerStreamingServer[pb.EnumerateBlobsResponse]) error {
	for field, bound := range map[string]string{"after": request.After, "until": request.Until} {
		isASCII := !slices.ContainsFunc([]byte(bound), func(b byte) bool { return b > 127 })
		if !isASCII || len(bound) > maxBound {
			return fail(codes.InvalidArgument, "INVALID_FIELD", field, "%s must be ASCII text of at most %d characters", field, maxBound)
		}
	}
	refs, err := s.blobs.refs(request.After, request.Until)
	if err != nil {
		return failed(err)
	}
	complete := request.Limit == 0 || uint64(len(refs)) <= request.Limit
	if !complete {
		refs = refs[:request.Limit]
	}
	var count uint64
	for page := range slices.Chunk(refs, pageRefs) {
		blobs := make([]*pb.BlobMeta, 0, len(page))
		for _, ref := range page {
			size, held, err := s.blobs.size(ref)
			if err != nil {
				return failed(err)
			}
			if held { // Somebody may have deleted it meanwhile.
				blobs = append(blobs, &pb.BlobMeta{Ref: ref, SizeBytes: &size})
			}
		}
		count += uint64(len(blobs))
		if err := stream.Send(&pb.EnumerateBlobsResponse{Blobs: blobs}); err != nil {
			return err
		}
	}
	// Only this says that the listing is whole: a stream that ends without it was cut.
	return stream.Send(&pb.EnumerateBlobsResponse{End: &pb.EnumerateEnd{Count: &count, Complete: &complete}})
}
