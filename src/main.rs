//! The `unstale` binary. Everything is in the library; see its layout map.

fn main() -> std::process::ExitCode {
    unstale::cmd::main()
}
