package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"time"

	pb "github.com/blobferry/blobferry/examples/go/gen/blobferryv1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	callLimit   = 30 * time.Second // how long an answer may take
	longestWait = time.Minute      // of one WaitReplicated; then it is asked again
)

// A producer speaks to a replicator.
type producer struct {
	replicator pb.ReplicationServiceClient
	options
}

// announce tells the replicator of blobs that the store holds, and prints those that are durably queued now. It answers how many
// were refused, and the token for all others.
func (p producer) announce(ctx context.Context, blobs []blob) (refused int, token string, err error) {
	if len(blobs) == 0 {
		return 0, "", nil
	}
	request := &pb.EnqueueBlobsRequest{SourceStore: p.sourceStore, IssueWaitToken: p.wait > 0}
	for _, blob := range blobs {
		request.Items = append(request.Items, &pb.EnqueueItem{Ref: blob.ref, SizeBytes: &blob.size})
	}
	var answer *pb.EnqueueBlobsResponse
	err = retrying(ctx, p.patience, "announcing", func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		answer, err = p.replicator.EnqueueBlobs(ctx, request)
		return err
	})
	if err != nil {
		return 0, "", fmt.Errorf("written and not announced: %d of the files (the next full sync finds them): %w", len(blobs), err)
	}
	if len(answer.Results) != len(blobs) {
		return 0, "", fmt.Errorf("the replicator answered %d results for %d refs", len(answer.Results), len(blobs))
	}
	// The call is OK although some refs were refused.
	for at, result := range answer.Results {
		if result.Error != nil {
			refused++
			log.Printf("%s: announcing it: %s: %s", blobs[at].path, result.Error.Reason, result.Error.Message)
			continue
		}
		routes := make([]string, len(result.Routes))
		for at, push := range result.Routes {
			routes[at] = push.Route
		}
		fmt.Printf("%s %d %s -> %s\n", blobs[at].ref, blobs[at].size, blobs[at].path, strings.Join(routes, ", "))
	}
	return refused, answer.WaitToken, nil
}

// waitFor waits until all that these tokens stand for is confirmed by every store that it goes to.
func (p producer) waitFor(ctx context.Context, tokens []string) error {
	deadline := time.Now().Add(p.wait)
	for _, token := range tokens {
		if token == "" {
			continue // Nothing was announced.
		}
		if err := p.waitForOne(ctx, token, deadline); err != nil {
			return err
		}
	}
	return nil
}

func (p producer) waitForOne(ctx context.Context, token string, deadline time.Time) error {
	for {
		left := max(0, time.Until(deadline))
		request := &pb.WaitReplicatedRequest{WaitToken: token, MaxWait: durationpb.New(min(left, longestWait))}
		var answer *pb.WaitReplicatedResponse
		err := retrying(ctx, left, "waiting", func() (err error) {
			ctx, cancel := context.WithTimeout(ctx, min(left, longestWait)+callLimit)
			defer cancel()
			answer, err = p.replicator.WaitReplicated(ctx, request)
			return err
		})
		if status.Code(err) == codes.NotFound {
			return exit{exitNotInTime, fmt.Errorf("the replicator does not know the wait token any more: %w", err)}
		}
		if err != nil {
			return fmt.Errorf("all is announced, and not known to be confirmed: %w", err)
		}
		switch {
		case answer.Outcome == pb.WaitOutcome_WAIT_OUTCOME_CONFIRMED:
			fmt.Println(answer.Summary)
			return nil
		case answer.Outcome == pb.WaitOutcome_WAIT_OUTCOME_TIMED_OUT && time.Until(deadline) > 0:
			continue
		case answer.Outcome == pb.WaitOutcome_WAIT_OUTCOME_TIMED_OUT:
			return exit{exitNotInTime, unconfirmed(answer)}
		default:
			return exit{exitGivenUp, unconfirmed(answer)}
		}
	}
}

// unconfirmed tells how each blob stands that is not confirmed.
func unconfirmed(answer *pb.WaitReplicatedResponse) error {
	lines := []string{answer.Summary}
	for _, blob := range answer.Unconfirmed {
		for _, route := range blob.Routes {
			state := strings.TrimPrefix(route.State.String(), "BLOB_STATE_")
			line := fmt.Sprintf("%s on route %s: %s", blob.Ref, route.Route, state)
			if why := strings.TrimSpace(route.GetFault().GetMessage() + " " + route.Note); why != "" {
				line += ": " + why
			}
			lines = append(lines, line)
		}
	}
	return errors.New(strings.Join(lines, "\n"))
}
