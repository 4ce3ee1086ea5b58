//! What people are told of the control plane's absence.

use std::fmt::{self, Write as _};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use super::*;

/// Remembers the events of the client, a line each.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mesh_xds::client") && *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

/// XD9, TE25: waiting for the control plane is told as a warning once, with where and why, and its coming as information.
#[tokio::test]
async fn waiting_is_warned_of_once() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = Client::start(bootstrap(address, None));
    let again = |line: &String| line.starts_with("DEBUG ") && line.contains("still not reached");
    let told_again = async {
        while !log.lines().iter().any(again) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told_again).await.unwrap();
    let lines: Vec<_> = log.lines().into_iter().filter(|line| !line.starts_with("DEBUG ")).collect();
    assert!(lines[0].starts_with("WARN ") && lines[0].contains("cannot be reached"), "{lines:?}");
    assert!(lines[0].contains(&format!("server={address}")) && lines[0].contains("refused"), "{lines:?}");
    assert_eq!(lines.len(), 1, "{lines:?}");
    let _plane = Plane::start_at(address, &config("a", 1), None).await;
    next_config(&mut client.config()).await;
    let lines: Vec<_> = log.lines().into_iter().filter(|line| !line.starts_with("DEBUG ")).collect();
    assert!(lines.iter().skip(1).all(|line| line.starts_with("INFO ")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("answers again")), "{lines:?}");
}
