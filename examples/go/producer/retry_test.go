package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestWhatPassesIsTriedAgain(t *testing.T) {
	passing := map[codes.Code]bool{
		codes.Unavailable: true, codes.ResourceExhausted: true, codes.Canceled: true, codes.Unknown: true,
		codes.DeadlineExceeded: true, codes.InvalidArgument: false, codes.FailedPrecondition: false, codes.Internal: false,
	}
	for code, want := range passing {
		err := fmt.Errorf("announcing: %w", status.Error(code, "why"))
		if isPassing(err) != want {
			t.Errorf("%v: passing is %v", code, !want)
		}
	}
	if isPassing(os.ErrNotExist) {
		t.Error("a file that is not there passes")
	}
}

func TestPausesGrowAndAreNotShorterThanTheServerAsks(t *testing.T) {
	full, err := status.New(codes.ResourceExhausted, "full").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	for attempt, longest := range []time.Duration{firstPause, 2 * firstPause, 4 * firstPause} {
		if pause := pauseAfter(status.Error(codes.Unavailable, "away"), attempt); pause < longest/2 || pause > longest {
			t.Errorf("attempt %d: %v", attempt, pause)
		}
		if pause := pauseAfter(full.Err(), attempt); pause < time.Minute || pause > time.Minute+longest {
			t.Errorf("attempt %d at a full queue: %v", attempt, pause)
		}
	}
	if pause := pauseAfter(status.Error(codes.Unavailable, "away"), 1000); pause > longestPause {
		t.Errorf("after very many attempts: %v", pause)
	}
}

func TestRetryingEndsWithWhatIsFinalAndWithPatience(t *testing.T) {
	final := status.Error(codes.InvalidArgument, "no such store")
	calls := 0
	err := retrying(context.Background(), time.Minute, "trying", func() error {
		if calls++; calls == 1 {
			return status.Error(codes.Unavailable, "away")
		}
		return final
	})
	if calls != 2 || !errors.Is(err, final) {
		t.Errorf("%d calls, %v", calls, err)
	}
	calls = 0
	err = retrying(context.Background(), 0, "trying", func() error {
		calls++
		return status.Error(codes.Unavailable, "away")
	})
	if calls != 1 || status.Code(err) != codes.Unavailable {
		t.Errorf("without patience: %d calls, %v", calls, err)
	}
}
