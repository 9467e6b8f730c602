// A producer in Go: writes files to a store, and announces them at a replicator.
//
//	go run ./producer -store http://127.0.0.1:7080 -replicator http://127.0.0.1:7070 -wait 1m FILE...
//
// The contract, as blobferry's documentation has it: first write, then announce, and retry what may pass for ten minutes. A blob whose
// announcement never got through is found by the next full sync. With -wait, it ends when every destination has the files.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	pb "github.com/blobferry/blobferry/examples/go/gen/blobferryv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

const usage = `Usage: producer [OPTION...] FILE...

Writes files to a store, and announces them at a replicator. For each file that is durably queued it prints the ref, the
size, the path, and the routes.

`

const exitCodes = `
Exit codes: 0 all done; 1 some files failed, or something was refused; 2 usage; 3 store or replicator did not answer in time;
4 not all is confirmed in time, or the wait token is not known; 5 some files will not be confirmed by waiting; 130 interrupted.
`

// How many files are written before they are announced, in one call; the replicator takes up to 10,000 refs.
const batchFiles = 1000

// How the program ends; blobferry's own commands use the same numbers.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitNotInTime   = 4
	exitGivenUp     = 5
	exitInterrupted = 130
)

// An exit is an error with the code that the program is to end with.
type exit struct {
	code int
	error
}

type options struct {
	store, replicator, sourceStore string
	patience, wait                 time.Duration
	paths                          []string
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("producer: ")
	var o options
	flag.StringVar(&o.store, "store", "http://127.0.0.1:7080", "the `URL` of the store that the files go to")
	flag.StringVar(&o.replicator, "replicator", "http://127.0.0.1:7070", "the `URL` of the replicator that is told of them")
	flag.StringVar(&o.sourceStore, "source-store", "", "the store's `name` in the replicator's configuration; not needed where only one is a source")
	flag.DurationVar(&o.patience, "patience", 10*time.Minute, "how long each call is retried")
	flag.DurationVar(&o.wait, "wait", 0, "wait so long, at most, until every destination has the files; 0: do not wait")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
		fmt.Fprint(flag.CommandLine.Output(), exitCodes)
	}
	flag.Parse()
	o.paths = flag.Args()
	if len(o.paths) == 0 {
		flag.Usage()
		os.Exit(exitUsage)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	err := run(ctx, o)
	if err == nil {
		return
	}
	if ctx.Err() != nil {
		log.Print("interrupted: what was not announced is found by the next full sync")
		os.Exit(exitInterrupted)
	}
	log.Print(err)
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	var known exit
	switch {
	case errors.As(err, &known):
		return known.code
	case isPassing(err):
		return exitUnreachable
	default:
		return exitFailed
	}
}

// run does all of it. One file that fails stops no other.
func run(ctx context.Context, o options) error {
	storeChannel, err := dial(o.store)
	if err != nil {
		return exit{exitUsage, fmt.Errorf("-store: %w", err)}
	}
	defer storeChannel.Close()
	replicatorChannel, err := dial(o.replicator)
	if err != nil {
		return exit{exitUsage, fmt.Errorf("-replicator: %w", err)}
	}
	defer replicatorChannel.Close()
	store := pb.NewBlobReceiverServiceClient(storeChannel)
	producer := producer{pb.NewReplicationServiceClient(replicatorChannel), o}

	var failed int
	var tokens []string
	for paths := range slices.Chunk(o.paths, batchFiles) {
		var written []blob
		var stopped error
		for _, path := range paths {
			blob, err := write(ctx, store, path, o.patience)
			if err == nil {
				written = append(written, blob)
				continue
			}
			if isPassing(err) { // The store is away, and the next files would wait for it as long.
				stopped = err
				break
			}
			failed++
			log.Print(err)
		}
		refused, token, err := producer.announce(ctx, written)
		if err := errors.Join(stopped, err); err != nil {
			return err
		}
		failed += refused
		tokens = append(tokens, token)
	}
	if o.wait > 0 {
		if err := producer.waitFor(ctx, tokens); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d files failed", failed, len(o.paths))
	}
	return nil
}

// dial makes a channel to a server, which connects when it is first used.
func dial(url string) (*grpc.ClientConn, error) {
	scheme, address, _ := strings.Cut(url, "://")
	var security credentials.TransportCredentials
	switch scheme {
	case "http":
		security = insecure.NewCredentials()
	case "https":
		security = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	default:
		return nil, fmt.Errorf("%q is not http://host:port or https://host:port", url)
	}
	address = strings.TrimSuffix(address, "/")
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, fmt.Errorf("%q is not %s://host:port: %w", url, scheme, err)
	}
	// While a connection cannot be made, calls fail at once until gRPC tries again: after two minutes, in the end, by default.
	pause := backoff.DefaultConfig
	pause.MaxDelay = longestPause / 2
	connect := grpc.ConnectParams{Backoff: pause, MinConnectTimeout: 5 * time.Second}
	return grpc.NewClient("dns:///"+address, grpc.WithTransportCredentials(security), grpc.WithConnectParams(connect))
}
