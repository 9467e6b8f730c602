package main

import (
	"context"
	"log"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	firstPause   = 500 * time.Millisecond
	longestPause = 15 * time.Second
)

// retrying calls until it works, for as long as `patience`, at least once. All calls of a producer are safe to repeat.
func retrying(ctx context.Context, patience time.Duration, what string, call func() error) error {
	deadline := time.Now().Add(patience)
	for attempt := 0; ; attempt++ {
		err := call()
		if err == nil || ctx.Err() != nil || !isPassing(err) {
			return err
		}
		pause := pauseAfter(err, attempt)
		if time.Now().Add(pause).After(deadline) {
			return err
		}
		log.Printf("%s: %v; trying again in %v", what, err, pause.Round(time.Millisecond))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// isPassing tells whether an error may pass by itself. UNAVAILABLE and RESOURCE_EXHAUSTED are servers' own words for that; a
// connection that ends under a call is CANCELLED or UNKNOWN at times, and an answer that is late is DEADLINE_EXCEEDED.
func isPassing(err error) bool {
	answer, isStatus := status.FromError(err)
	if !isStatus {
		return false // Not from a call, such as a file that cannot be read.
	}
	switch answer.Code() {
	case codes.Unavailable, codes.ResourceExhausted, codes.Canceled, codes.Unknown, codes.DeadlineExceeded:
		return true
	default:
		return false
	}
}

// pauseAfter is twice as long after each attempt, and never the same for all producers, so that they do not come back at once.
// Where the server says when to try again (RetryInfo), it is not shorter than that.
func pauseAfter(err error, attempt int) time.Duration {
	pause := min(firstPause<<min(attempt, 10), longestPause)
	pause = pause/2 + rand.N(pause/2)
	for _, detail := range status.Convert(err).Details() {
		if info, isRetryInfo := detail.(*errdetails.RetryInfo); isRetryInfo {
			pause += info.GetRetryDelay().AsDuration()
		}
	}
	return pause
}
