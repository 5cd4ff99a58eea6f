# Lists the commands.
default:
    @just --list

# Formatting, lints and unit tests: the inner loop.
quick:
    scripts/test --quick

# Everything that must pass before a change is merged.
test:
    scripts/test

# The same with longer chaos, kill, fault and property tests.
test-long:
    scripts/test --long

# Unit tests whose name contains the filter: just unit domain::target
unit filter="":
    cargo test --features failpoints --lib {{ filter }}

# The store contract on both stores: just store on_sqlite::tokens
store filter="":
    cargo test --features failpoints --test store_conformance {{ filter }}

# Tests of the built binary: just system on_postgres::basics
system filter="":
    cargo test --features failpoints --test system {{ filter }}

# Formats the code.
fmt:
    cargo fmt

# Lints of all targets, as in scripts/test.
lint:
    cargo clippy --all-targets --features failpoints -- -D warnings

# Writes config/odoshi.toml again from the code.
sample:
    ODOSHI_WRITE_SAMPLE=1 cargo test --lib config::tests::the_sample

# A server and agents in a temporary folder: just demo --agents 500
demo *arguments:
    cargo run --release -- demo {{ arguments }}

# A benchmark: just bench life --store postgres://…
bench *arguments:
    cargo run --release -- bench {{ arguments }}

# The documentation of the library, in a browser.
doc:
    cargo doc --no-deps --open
