//! The query log, as the process writes it (R7.3).

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock, Mutex};

use hickory_proto::rr::RecordType as T;
use tracing::field::Field;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::client::addresses;
use crate::stage::eventually;
use crate::standalone::{Alone, configured};
use crate::upstream::{Upstream, honest};

/// Lines of the query log of every server of this process, as `field=value` each.
static LINES: LazyLock<Arc<Mutex<Vec<String>>>> = LazyLock::new(|| {
    let lines = Arc::default();
    tracing::subscriber::set_global_default(Collect(Arc::clone(&lines)))
        .expect("nobody else collects");
    lines
});

struct Collect(Arc<Mutex<Vec<String>>>);

impl Subscriber for Collect {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "vl3::dns::query"
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = String::new();
        event.record(&mut |field: &Field, value: &dyn std::fmt::Debug| {
            write!(line, "{field}={value:?} ").expect("a text takes everything");
        });
        self.0.lock().unwrap().push(line);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

fn lines_with(text: &str) -> Vec<String> {
    let lines = LINES.lock().unwrap();
    let with = lines.iter().filter(|line| line.contains(text));
    with.cloned().collect()
}

#[tokio::test]
async fn r7_3_questions_are_logged_with_votes_and_rule_where_that_is_wanted() {
    assert!(lines_with("nothing yet").is_empty());
    let up = Upstream::several(vec![honest(&["192.0.2.1"])]).await;
    let quiet = Alone::new(vec![configured("all", &up[0], &[])], |_| {}).await;
    let all = Alone::new(vec![configured("all", &up[0], &[])], |config| {
        config.query_log = 1.0;
    })
    .await;
    for _ in 0..4 {
        for (server, name) in [(&quiet, "db.quiet.test."), (&all, "db.logged.test.")] {
            let reply = server.ask(name, T::A).await;
            assert_eq!(addresses(&reply), ["192.0.2.1"]);
        }
    }
    eventually("four lines", || lines_with("db.logged.test").len() == 4).await;
    let lines = lines_with("db.logged.test");
    for part in [
        "client=127.0.9.1",
        "proto=\"udp\"",
        "rtype=\"A\"",
        "rcode=\"NOERROR\"",
        "rule=\"R2.2\"",
        "votes=\"all=positive\"",
    ] {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
    assert!(lines[1].contains("votes=\"fresh\""), "{}", lines[1]);
    assert!(lines_with("db.quiet.test").is_empty(), "off by default");
    let text = all.ctx.metrics.encode();
    assert!(text.contains("vl3_dns_query_log_lines_total 4"), "{text}");
    assert!(text.contains("vl3_dns_query_log_dropped_total 0"), "{text}");
}
