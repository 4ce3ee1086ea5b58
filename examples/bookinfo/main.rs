//! Bookinfo: four small services that put a page together, each its own process.

#[path = "services.rs"]
mod services;

use std::process::ExitCode;

use axum::BoxError;
use axum::body::Body;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;

use services::client::HttpClient;
use services::{details, productpage, ratings, reviews};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let service = arguments.next().unwrap_or_default();
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:9080".to_owned());
    let client = HttpClient::new(Client::builder(TokioExecutor::new()).build_http::<Body>());
    let router = match service.as_str() {
        "productpage" => productpage::router(productpage::Settings::from_env(&process_env)?, client),
        "details" => details::router(details::Settings::from_env(&process_env), client),
        "reviews" => reviews::router(reviews::Settings::from_env(&process_env), client),
        "ratings" => ratings::router(ratings::Behaviour::from_env(&process_env), rand::random),
        _ => return Err("name a service: productpage, details, reviews or ratings".into()),
    };
    Ok(axum::serve(TcpListener::bind(address).await?, router).await?)
}

/// One variable of this process's environment; an empty one is none.
fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
