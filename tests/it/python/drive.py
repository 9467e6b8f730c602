"""A client that is not blobferry's own code: stubs from proto/, Python's grpcio. Driven by tests/it/foreign.rs.

    drive.py announce SOURCE REPLICATOR      writes blobs to the source and announces them
    drive.py ready REPLICATOR                waits until Status shows them waiting for a destination that is down
    drive.py arrived REPLICATOR DESTINATION  waits until they are copied, reads each back and compares
    drive.py refused REPLICATOR              sends nonsense, and checks codes and details
"""

import hashlib
import pathlib
import random
import sys
import time

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "examples" / "python"))

from stubs import blob_reader_pb2 as reader  # noqa: E402
from stubs import blob_reader_pb2_grpc as reader_grpc  # noqa: E402
from stubs import blob_receiver_pb2 as receiver  # noqa: E402
from stubs import blob_receiver_pb2_grpc as receiver_grpc  # noqa: E402
from stubs import replication_pb2 as replication  # noqa: E402
from stubs import replication_pb2_grpc as replication_grpc  # noqa: E402
from stubs import status_pb2 as status  # noqa: E402
from stubs import types_pb2 as types  # noqa: E402

CHUNK = 256 * 1024
SIZES = [0, 1, 65_535, 65_536, 65_537, CHUNK - 1, CHUNK, CHUNK + 1, 3_000_000, 100 << 20]
PATIENCE = 120  # seconds


def blobs():
    for seed, size in enumerate(SIZES):
        data = random.Random(seed).randbytes(size)
        yield "sha256-" + hashlib.sha256(data).hexdigest(), data


def messages(ref, data, **header):
    yield receiver.ReceiveBlobRequest(header=receiver.BlobHeader(ref=ref, **header))
    for at in range(0, len(data), CHUNK):
        yield receiver.ReceiveBlobRequest(chunk=data[at : at + CHUNK])


def stub(kind, address):
    return kind(grpc.insecure_channel(address))


def until(what, done):
    deadline = time.monotonic() + PATIENCE
    while not (found := done()):
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        time.sleep(0.05)
    return found


def only_route(replicator):
    answer = stub(replication_grpc.ReplicationServiceStub, replicator).Status(replication.StatusRequest())
    assert len(answer.status.routes) == 1
    return answer.status.routes[0]


def waiting(route):
    lanes = (route.queued.fresh, route.queued.backfill)
    return sum(t.entries for lane in lanes for t in (lane.ready, lane.claimed, lane.retrying, lane.parked))


def announce(source, replicator):
    to_source = stub(receiver_grpc.BlobReceiverServiceStub, source)
    to_replicator = stub(receiver_grpc.BlobReceiverServiceStub, replicator)
    for ref, data in blobs():
        stored = to_source.ReceiveBlob(messages(ref, data, size_bytes=len(data)))
        assert (stored.ref, stored.size_bytes, stored.disposition) == (ref, len(data), types.DISPOSITION_STORED), stored
        queued = to_replicator.ReceiveBlob(messages(ref, data))
        assert queued.disposition == types.DISPOSITION_ENQUEUED and len(queued.routes) == 1, queued
    health = stub(health_pb2_grpc.HealthStub, replicator)
    for service in ("", "blobferry.v1.BlobReceiverService", "blobferry.v1.ReplicationService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, (service, answer)
    services = ProtoReflectionDescriptorDatabase(grpc.insecure_channel(replicator)).get_services()
    assert "blobferry.v1.ReplicationService" in services, services


def ready(replicator):
    route = until("they wait", lambda: (r := only_route(replicator)).state == status.ROUTE_STATE_BLOCKED and r)
    fresh = route.queued.fresh
    assert fresh.ready.entries + fresh.claimed.entries == len(SIZES), fresh
    assert fresh.retrying.entries == fresh.parked.entries == 0, fresh
    assert route.summary, route
    assert '"entries": "0"' in json_format.MessageToJson(fresh), "zeros show in JSON"


def arrived(replicator, destination):
    until("all is copied", lambda: waiting(only_route(replicator)) == 0)
    at_destination = stub(reader_grpc.BlobReaderServiceStub, destination)
    for ref, data in blobs():
        parts = list(at_destination.FetchBlob(reader.FetchBlobRequest(ref=ref)))
        assert parts[0].header.size_bytes == len(data)
        assert b"".join(part.chunk for part in parts[1:]) == data, f"{ref} differs"
    route = only_route(replicator)
    assert route.all_time.confirmed_blobs == len(SIZES), route.all_time
    assert route.state == status.ROUTE_STATE_IN_SYNC, route.summary


def refused(replicator):
    to_replicator = stub(receiver_grpc.BlobReceiverServiceStub, replicator)
    ref, data = next(blob for blob in blobs() if blob[1])
    cases = [
        (messages(ref, b"?"), grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH"),
        (messages(ref, data, size_bytes=2), grpc.StatusCode.INVALID_ARGUMENT, "SIZE_MISMATCH"),
        (messages("../" + ref, data), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REF"),
        (messages(ref, data, source_store="nope"), grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_STORE"),
        (iter(()), grpc.StatusCode.INVALID_ARGUMENT, "HEADER_MISSING"),
    ]
    for stream, code, reason in cases:
        try:
            to_replicator.ReceiveBlob(stream)
        except grpc.RpcError as error:
            info = error_details_pb2.ErrorInfo()
            details = rpc_status.from_call(error).details
            assert any(detail.Unpack(info) for detail in details if detail.Is(info.DESCRIPTOR)), details
            assert (error.code(), info.domain, info.reason) == (code, "blobferry.v1", reason), (error, info)
        else:
            raise AssertionError(f"{reason} was accepted")


if __name__ == "__main__":
    {"announce": announce, "ready": ready, "arrived": arrived, "refused": refused}[sys.argv[1]](*sys.argv[2:])
    print("ok")
