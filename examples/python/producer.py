"""A producer: writes files to a store, and announces them to a replicator.

    python producer.py --store 127.0.0.1:7080 --replicator 127.0.0.1:7070 [--wait 60] FILE...

The contract: write to the store first, then announce, and retry UNAVAILABLE and RESOURCE_EXHAUSTED for 10 minutes. A blob
whose announcement never got through is found by the next full sync. With --wait, it ends when the destinations have the files.
"""

import argparse
import hashlib
import pathlib
import random
import sys
import time

import grpc

from stubs import blob_receiver_pb2 as receiver
from stubs import blob_receiver_pb2_grpc as receiver_grpc
from stubs import replication_pb2 as replication
from stubs import replication_pb2_grpc as replication_grpc
from stubs import story_pb2 as story

CHUNK = 256 * 1024  # bytes in a message
PATIENCE = 600  # seconds until an announcement is given up
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


def ref_and_size(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        return f"sha256-{digest.hexdigest()}", file.tell()


def messages(path, ref, size):
    yield receiver.ReceiveBlobRequest(header=receiver.BlobHeader(ref=ref, size_bytes=size))
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield receiver.ReceiveBlobRequest(chunk=chunk)


def retrying(call):
    """Calls until it works, for ten minutes at most; both calls of a producer are safe to repeat."""
    deadline, delay = time.monotonic() + PATIENCE, 0.5
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() not in AGAIN or time.monotonic() + delay > deadline:
                sys.exit(f"{error.code().name}: {error.details()}")
            print(f"{error.code().name}: {error.details()}; trying again", file=sys.stderr)
            time.sleep(delay * random.uniform(0.5, 1))
            delay = min(2 * delay, 15)


def wait(replicator, arguments, refs):
    """Waits until all are confirmed by every store that they go to; 10,000 refs fit a call."""
    deadline = time.monotonic() + arguments.wait
    for start in range(0, len(refs), 10_000):
        request = story.WaitReplicatedRequest(refs=refs[start : start + 10_000], source_store=arguments.source_store)
        request.max_wait.FromSeconds(max(0, round(deadline - time.monotonic())))
        answer = retrying(lambda: replicator.WaitReplicated(request, timeout=arguments.wait + 30))
        print(answer.summary)
        if answer.outcome != story.WAIT_OUTCOME_CONFIRMED:
            sys.exit("\n".join(str(blob) for blob in answer.unconfirmed))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", default="127.0.0.1:7080", help="the store that the files go to")
    parser.add_argument("--replicator", default="127.0.0.1:7070", help="the replicator that is told of them")
    parser.add_argument("--source-store", default="", help="the store's name in the replicator's configuration")
    parser.add_argument("--wait", type=int, metavar="SECONDS", help="wait so long until the destinations have them")
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE")
    arguments = parser.parse_args()

    store = receiver_grpc.BlobReceiverServiceStub(grpc.insecure_channel(arguments.store))
    replicator = replication_grpc.ReplicationServiceStub(grpc.insecure_channel(arguments.replicator))
    refs = []
    for path in arguments.files:
        try:
            ref, size = ref_and_size(path)
        except OSError as error:
            sys.exit(f"{path}: {error.strerror}")
        retrying(lambda: store.ReceiveBlob(messages(path, ref, size), timeout=600))
        item = replication.EnqueueItem(ref=ref, size_bytes=size)
        request = replication.EnqueueBlobsRequest(source_store=arguments.source_store, items=[item])
        answer = retrying(lambda: replicator.EnqueueBlobs(request, timeout=30))
        result = answer.results[0]
        if result.HasField("error"):
            sys.exit(f"{path}: {result.error.message}")
        print(f"{ref} {size} {path} -> {', '.join(push.route for push in result.routes)}")
        refs.append(ref)
    if arguments.wait is not None:
        wait(replicator, arguments, refs)


if __name__ == "__main__":
    main()
