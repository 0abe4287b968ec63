//! `vl3`, the one binary: roles and the verbs that serve people.

mod app;
mod demo;
mod dns;
mod identity;
mod network;
mod output;
mod registry;
mod status;
mod wg;

fn main() -> std::process::ExitCode {
    vl3_identity::install_crypto_provider();
    app::main()
}
