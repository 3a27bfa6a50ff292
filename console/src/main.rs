//! A web console over the views of `loader_history`: pages for people, a JSON API and a stream of
//! events for programs.
//!
//! Every number comes from the rows of a view or a function of the extension; see [`database`].

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

mod api;
mod assets;
mod cache;
mod config;
mod connection;
mod database;
mod events;
mod filter;
mod format;
mod pages;
mod problem;
mod server;
mod state;
mod timestamp;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match server::run(config::Config::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
