# The commands of this repository by name; each is plain Cargo, so `just` is a convenience, not a need.

# Bookinfo on the mesh: the page is at http://127.0.0.1:9080/productpage
bookinfo:
    cargo run --release --example bookinfo

# What the README tells everybody to run
test:
    cargo test --workspace

# Istio's own files, into target/istio: what the tutorial, the dashboards and the console's tests use
istio:
    bash .ci/istio 1.29.6 target/istio

# Bookinfo on Istio's own control plane: `just istiod /path/to/pilot-discovery`, of 1.29.6
istiod program:
    cargo build --example bookinfo
    MESH_REQUIRE_PEERS=1 MESH_ISTIOD={{program}} cargo test --test istiod

# Everything the continuous integration runs
ci:
    bash .ci/run

# Formatting, lints and documentation
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# A call through the mesh beside bare hyper and plain tonic; results go to benches/RESULTS.md
bench:
    cargo bench --bench call

# Write the generated protobuf code, and what the protocol scripts expect, anew
regenerate:
    MESH_REGENERATE=1 cargo test -p mesh-xds --lib --test protos
