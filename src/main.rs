//! The `odoshi` binary. All of its code is in [`odoshi::cli`].

fn main() -> std::process::ExitCode {
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    odoshi::cli::main()
}
