"""Makes the gRPC stubs from ../../proto at the first import, and offers them as `pb` and the service modules."""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"
OUT = HERE / "gen"


def generate(out=OUT):
    """Compiles the protocol into `out` unless that is newer than every .proto file."""
    sources = sorted(PROTO.glob("blobferry/v1/*.proto"))
    stamp = out / ".stamp"
    if stamp.exists() and all(stamp.stat().st_mtime >= source.stat().st_mtime for source in sources):
        return
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"--python_out={out}", f"--grpc_python_out={out}"]
    subprocess.run(command + [str(source) for source in sources], check=True)
    stamp.touch()


generate()
sys.path.insert(0, str(OUT))

from blobferry.v1 import blob_reader_pb2, blob_receiver_pb2, replication_pb2, status_pb2, story_pb2, types_pb2  # noqa: E402,F401
from blobferry.v1 import blob_reader_pb2_grpc, blob_receiver_pb2_grpc, replication_pb2_grpc  # noqa: E402,F401
