//! The `odoshi` binary: everything is in [`odoshi::cli`].

fn main() -> std::process::ExitCode {
    odoshi::cli::main()
}
