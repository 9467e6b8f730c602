"""A complete little blob store that blobferry can replicate from and to.

    python store.py --listen 127.0.0.1:7090 --data /tmp/little-store

One file for each blob, under its ref's name. A blob is written to a temporary file, synced, and renamed only after its
digest matched, so that a kill at any moment leaves no wrong blob behind. `blobferry conformance --store URL` checks it.
"""

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
import uuid

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from stubs import blob_reader_pb2 as reader
from stubs import blob_reader_pb2_grpc as reader_grpc
from stubs import blob_receiver_pb2 as receiver
from stubs import blob_receiver_pb2_grpc as receiver_grpc
from stubs import types_pb2 as types

CHUNK = 256 * 1024  # bytes in a message
PAGE = 1000  # refs in a message
MAX_REFS = 10_000  # refs in a StatBlobs request
FUNCTIONS = {"sha1": 40, "sha224": 56, "sha256": 64, "sha512": 128}  # hex digits of their digests
REF = re.compile(r"(?P<function>[a-z0-9]+)-(?P<hex>[0-9a-f]+)")


def fail(context, code, reason, message, field=None):
    """Ends the call with a code, a stable reason, and for a bad field its name."""
    details = [error_details_pb2.ErrorInfo(domain="blobferry.v1", reason=reason)]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code, message=message, details=packed)))


def digest_function(context, ref, field):
    """The name of the ref's digest function; a text that is not exactly a ref ends the call."""
    match = REF.fullmatch(ref) if len(ref) < 200 else None
    if not match or FUNCTIONS.get(match["function"]) != len(match["hex"]):
        known = ", ".join(FUNCTIONS)
        message = f"{field} is not <function>-<lowercase hex digest> with one of {known}: {ascii(ref[:40])}"
        fail(context, code_pb2.INVALID_ARGUMENT, "INVALID_REF", message, field)
    return match["function"]


def sync_folder(path):
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Store(receiver_grpc.BlobReceiverServiceServicer, reader_grpc.BlobReaderServiceServicer):
    """The blobs in a folder."""

    def __init__(self, data):
        self.blobs = pathlib.Path(data, "blobs")
        self.incoming = pathlib.Path(data, "incoming")
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.incoming.mkdir(exist_ok=True)
        for leftover in self.incoming.iterdir():
            leftover.unlink()
        name = pathlib.Path(data, "store_id")
        if not name.exists():
            draft = self.incoming / "store_id"
            draft.write_text(str(uuid.uuid4()))
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
            draft.rename(name)
            sync_folder(data)
        self.store_id = name.read_text()
        self.commit = threading.Lock()

    def say_who(self, context):
        """Every answer says which store gives it: an address may lead to several."""
        context.send_initial_metadata((("blobferry-store-id", self.store_id),))

    def GetPeerInfo(self, request, context):
        self.say_who(context)
        info = types.PeerInfo(
            store_id=self.store_id,
            kind=types.PEER_KIND_STORE,
            version="little-store 1",
            digest_functions=sorted(FUNCTIONS),
            abilities=[types.ABILITY_STAT, types.ABILITY_ENUMERATE, types.ABILITY_FETCH, types.ABILITY_REPLACE],
        )
        return receiver.GetPeerInfoResponse(peer_info=info)

    def ReceiveBlob(self, requests, context):
        self.say_who(context)
        first = next(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            fail(context, code_pb2.INVALID_ARGUMENT, "HEADER_MISSING", "the first message must be a header")
        header = first.header
        function = digest_function(context, header.ref, "header.ref")
        stated = header.size_bytes if header.HasField("size_bytes") else None
        digest, size = hashlib.new(function), 0
        file = tempfile.NamedTemporaryFile(dir=self.incoming, delete=False)
        try:
            with file:
                for request in requests:
                    part = request.WhichOneof("part")
                    if part == "header":
                        fail(context, code_pb2.INVALID_ARGUMENT, "HEADER_REPEATED", "a second header came")
                    if part is None:
                        fail(context, code_pb2.INVALID_ARGUMENT, "MESSAGE_EMPTY", "a message has neither header nor chunk")
                    size += len(request.chunk)
                    if stated is not None and size > stated:
                        fail(context, code_pb2.INVALID_ARGUMENT, "SIZE_MISMATCH", f"more than the stated {stated} bytes came")
                    digest.update(request.chunk)
                    file.write(request.chunk)
                if stated is not None and size < stated:
                    fail(context, code_pb2.INVALID_ARGUMENT, "SIZE_MISMATCH", f"{size} of the stated {stated} bytes came")
                actual = f"{function}-{digest.hexdigest()}"
                if actual != header.ref:
                    fail(context, code_pb2.INVALID_ARGUMENT, "DIGEST_MISMATCH", f"the bytes are those of {actual}")
                file.flush()
                os.fsync(file.fileno())
            # A stream that was cut looks like one that ended, until gRPC has told this call so. Cut ones commit nothing.
            if not context.is_active():
                return receiver.ReceiveBlobResponse()
            with self.commit:
                target = self.blobs / header.ref
                was_new = not target.exists()
                if was_new or header.replace:
                    os.rename(file.name, target)
            sync_folder(self.blobs)
        finally:
            pathlib.Path(file.name).unlink(missing_ok=True)
        return receiver.ReceiveBlobResponse(
            ref=header.ref, size_bytes=size, disposition=types.DISPOSITION_STORED, was_new=was_new
        )

    def StatBlobs(self, request, context):
        self.say_who(context)
        if len(request.refs) > MAX_REFS:
            fail(context, code_pb2.INVALID_ARGUMENT, "TOO_MANY_ITEMS", f"at most {MAX_REFS} refs in one request", "refs")
        found = []
        for at, ref in enumerate(request.refs):
            digest_function(context, ref, f"refs[{at}]")
            try:
                found.append(types.BlobMeta(ref=ref, size_bytes=(self.blobs / ref).stat().st_size))
            except FileNotFoundError:
                pass
        return reader.StatBlobsResponse(blobs=found)

    def FetchBlob(self, request, context):
        self.say_who(context)
        digest_function(context, request.ref, "ref")
        try:
            file = open(self.blobs / request.ref, "rb")
        except FileNotFoundError:
            fail(context, code_pb2.NOT_FOUND, "BLOB_MISSING", f"there is no blob {request.ref}")
        with file:
            size = os.fstat(file.fileno()).st_size
            if request.offset > size:
                message = f"offset {request.offset} lies beyond the blob's {size} bytes"
                fail(context, code_pb2.OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE", message)
            yield reader.FetchBlobResponse(header=reader.FetchBlobHeader(ref=request.ref, size_bytes=size))
            file.seek(request.offset)
            left = size - request.offset
            if request.HasField("length"):
                left = min(left, request.length)
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield reader.FetchBlobResponse(chunk=chunk)

    def EnumerateBlobs(self, request, context):
        self.say_who(context)
        for field, bound in (("after", request.after), ("until", request.until)):
            if not bound.isascii() or len(bound) > 1024:
                fail(context, code_pb2.INVALID_ARGUMENT, "INVALID_FIELD", f"{field} must be at most 1,024 ASCII characters", field)
        refs = [ref for ref in os.listdir(self.blobs) if ref > request.after and (not request.until or ref <= request.until)]
        refs.sort()
        complete = not request.limit or len(refs) <= request.limit
        if not complete:
            refs = refs[: request.limit]
        for at in range(0, len(refs), PAGE):
            page = [types.BlobMeta(ref=ref, size_bytes=(self.blobs / ref).stat().st_size) for ref in refs[at : at + PAGE]]
            yield reader.EnumerateBlobsResponse(blobs=page)
        yield reader.EnumerateBlobsResponse(end=reader.EnumerateEnd(count=len(refs), complete=complete))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:7090", help="address and port; port 0 takes a free one")
    parser.add_argument("--data", required=True, help="the folder that holds the blobs")
    arguments = parser.parse_args()

    store = Store(arguments.data)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=64))
    receiver_grpc.add_BlobReceiverServiceServicer_to_server(store, server)
    reader_grpc.add_BlobReaderServiceServicer_to_server(store, server)
    try:
        port = server.add_insecure_port(arguments.listen)
    except RuntimeError as error:
        sys.exit(f"cannot listen at {arguments.listen}: {error}")
    server.start()
    host = arguments.listen.rpartition(":")[0]
    print(f"little store {store.store_id} listens on http://{host}:{port}", flush=True)

    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    stop.wait()
    server.stop(grace=5).wait()


if __name__ == "__main__":
    main()
