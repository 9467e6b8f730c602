// A little blob store in Go that blobferry can replicate from and to: one file for each blob.
//
//	go run ./store -listen 127.0.0.1:7080 -data /tmp/little-store
//
// It shows what a store needs, and is checked by `blobferry conformance`. It is made to be read, not to be fast: small blobs come
// one by one (no ABILITY_PACKED), each costs its own syncs, and a listing is held in memory.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	pb "github.com/blobferry/blobferry/examples/go/gen/blobferryv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
)

// How long calls may take to finish after SIGTERM or Ctrl-C.
const drain = 10 * time.Second

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "127.0.0.1:7080", "where to listen; port 0 takes a free one")
	data := flag.String("data", "", "the folder that holds the blobs; required")
	maxAge := flag.Duration("max-age", 0, "to try clients: how long a connection lives; 0: for ever")
	confirmAfter := flag.Duration("confirm-after", 0, "to try clients: how long to wait before a blob is confirmed")
	flag.Parse()
	if *data == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*listen, *data, *maxAge, *confirmAfter); err != nil {
		log.Fatalf("little store: %v", err)
	}
}

// run serves until the process is told to stop.
func run(listen, data string, maxAge, confirmAfter time.Duration) error {
	blobs, err := openFolder(data)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := newServer(blobs, maxAge, confirmAfter)
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		<-stop.Done()
		timer := time.AfterFunc(drain, server.Stop)
		defer timer.Stop()
		server.GracefulStop()
	}()
	fmt.Printf("little store %s listens on http://%s\n", blobs.id, listener.Addr())
	if err := server.Serve(listener); err != nil {
		return err
	}
	<-drained
	return nil
}

func newServer(blobs *folder, maxAge, confirmAfter time.Duration) *grpc.Server {
	// Every answer says which store gives it: an address may lead to several.
	name := metadata.Pairs("blobferry-store-id", blobs.id)
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
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: maxAge}),
	)
	store := &service{blobs: blobs, confirmAfter: confirmAfter}
	pb.RegisterBlobReceiverServiceServer(server, store)
	pb.RegisterBlobReaderServiceServer(server, store)
	// For `blobferry health`, and for grpcurl without files.
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	reflection.Register(server)
	return server
}
