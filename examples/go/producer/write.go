package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	pb "github.com/blobferry/blobferry/examples/go/gen/blobferryv1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	chunkBytes   = 256 << 10        // bytes of a blob in a message; every store takes as much
	idleLimit    = 30 * time.Second // how long a store may take no message
	confirmLimit = 5 * time.Minute  // how long it may take to confirm a blob of which it has all bytes
)

// A blob is a file under the name that its bytes give it.
type blob struct {
	path, ref string
	size      uint64
}

// write writes a file to the store: when it returns without an error, the store holds it durably.
func write(ctx context.Context, store pb.BlobReceiverServiceClient, path string, patience time.Duration) (blob, error) {
	blob, err := name(path)
	if err != nil {
		return blob, err
	}
	err = retrying(ctx, patience, "writing "+path, func() error { return send(ctx, store, blob) })
	if err != nil {
		err = fmt.Errorf("%s: writing it to the store: %w", path, err)
	}
	return blob, err
}

func refOf(digest hash.Hash) string {
	return "sha256-" + hex.EncodeToString(digest.Sum(nil))
}

// name computes a file's ref, and its size.
func name(path string) (blob, error) {
	file, err := os.Open(path)
	if err != nil {
		return blob{}, err
	}
	defer file.Close()
	digest := sha256.New()
	size, err := io.Copy(digest, file)
	return blob{path, refOf(digest), uint64(size)}, err
}

var errStalled = errors.New("the store takes nothing, or does not confirm")

// send sends a blob once: a header, its bytes in chunks, and then the half-close, upon which the store commits. Where it ends
// before that, the stream is cancelled, and the store keeps nothing.
func send(ctx context.Context, store pb.BlobReceiverServiceClient, blob blob) (err error) {
	file, err := os.Open(blob.path)
	if err != nil {
		return err
	}
	defer file.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A connection that leads nowhere any more says nothing: the call is ended where it does not get on.
	stalled := time.AfterFunc(idleLimit, func() { cancel(errStalled) })
	defer stalled.Stop()
	defer func() {
		if err != nil && context.Cause(ctx) == errStalled {
			err = status.Error(codes.DeadlineExceeded, errStalled.Error())
		}
	}()

	stream, err := store.ReceiveBlob(ctx)
	if err != nil {
		return err
	}
	put := func(message *pb.ReceiveBlobRequest) error {
		err := stream.Send(message)
		if errors.Is(err, io.EOF) { // The store has ended the call, and its answer says why.
			err = stream.RecvMsg(&pb.ReceiveBlobResponse{})
			if err == nil {
				err = errors.New("the store answered before it had all bytes")
			}
		}
		stalled.Reset(idleLimit)
		return err
	}
	header := &pb.BlobHeader{Ref: blob.ref, SizeBytes: &blob.size}
	if err := put(&pb.ReceiveBlobRequest{Part: &pb.ReceiveBlobRequest_Header{Header: header}}); err != nil {
		return err
	}
	digest := sha256.New()
	for {
		chunk := make([]byte, chunkBytes) // A new one each time: what was sent belongs to gRPC.
		n, err := io.ReadFull(file, chunk)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		digest.Write(chunk[:n])
		if err := put(&pb.ReceiveBlobRequest{Part: &pb.ReceiveBlobRequest_Chunk{Chunk: chunk[:n]}}); err != nil {
			return err
		}
	}
	if refOf(digest) != blob.ref {
		return errors.New("the file was changed while it was read")
	}
	stalled.Reset(confirmLimit)
	answer, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	return confirmed(blob, answer)
}

// confirmed checks that the answer is a store's, and about this blob. Nothing else makes sure that the store holds it.
func confirmed(blob blob, answer *pb.ReceiveBlobResponse) error {
	switch {
	case answer.Disposition != pb.Disposition_DISPOSITION_STORED:
		return fmt.Errorf("it is no store: it answered %v, and not that it holds the blob", answer.Disposition)
	case answer.Ref != blob.ref || answer.SizeBytes == nil || *answer.SizeBytes != blob.size:
		return fmt.Errorf("it confirmed %s of %d bytes, and not %s of %d bytes", answer.Ref, answer.GetSizeBytes(), blob.ref, blob.size)
	}
	return nil
}
