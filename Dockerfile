# The image of blobferry: `docker build -t blobferry:0.1.0 .`
#
# What ends up in it: the program, the four libraries that it is linked to, certificate authorities, and a user. No shell,
# no package manager, nothing to run but blobferry. Built from scratch instead of on a distroless image, so that whoever
# can pull the one base below can build it, and what was checked (`make image-check`) is what runs.
#
# The dependencies, RocksDB among them, are compiled in a layer of their own, which only Cargo.toml, Cargo.lock and the
# compiler change: the first build takes some 15 minutes on two cores, the next ones a few.

FROM rust:1.95-trixie AS builder
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates clang libclang-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src

# A librocksdb.a of the same version that is built already can be linked in place of compiling it, for quick tries:
# --build-arg ROCKSDB_LIB_DIR=/rocksdb --build-arg ROCKSDB_STATIC=1, with the folder mounted there during the build.
ARG ROCKSDB_LIB_DIR
ARG ROCKSDB_STATIC

# The dependencies, around a program that does nothing, with the same command as below; then that program is forgotten.
COPY Cargo.toml Cargo.lock ./
COPY scripts/cargo scripts/rocksdb scripts/
RUN mkdir src && echo 'fn main() {}' | tee build.rs > src/main.rs && touch src/lib.rs \
    && scripts/cargo build --bin blobferry \
    && cargo clean --release --package blobferry && rm -r src build.rs

COPY build.rs ./
COPY proto proto
COPY src src
# The commit that `blobferry version` names; there is no repository here to ask.
ARG REVISION=unknown
RUN BLOBFERRY_COMMIT="$REVISION" scripts/cargo build --bin blobferry

# All files of the image but the program: they change with Debian, not with every commit.
FROM builder AS files
COPY deploy/image/collect deploy/image/blobferry.toml deploy/image/
RUN deploy/image/collect target/release/blobferry /image

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="blobferry" \
    org.opencontainers.image.description="Keeps one content-addressed blob store an exact, verified, asynchronous copy of another, over gRPC" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
COPY --from=files /image/ /
COPY --from=builder /src/target/release/blobferry /usr/bin/blobferry
COPY LICENSE /usr/share/doc/blobferry/copyright
ENV PATH=/usr/bin
# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
WORKDIR /var/lib/blobferry
# gRPC; HTTP: probes, metrics. A reference store listens at 7080 (`store --listen [::]:7080 …`).
EXPOSE 7070 7071
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/bin/blobferry", "health", "--any"]
ENTRYPOINT ["/usr/bin/blobferry"]
CMD ["serve", "--config", "/etc/blobferry/blobferry.toml"]
