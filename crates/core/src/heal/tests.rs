use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::machine::{Machine, Outbox};
use crate::time::{Now, Wall};

/// A machine, its clock, and what it wants done.
struct Bench {
    machine: AttachmentMachine,
    now: Mono,
    effects: Vec<Effect>,
}

const ROUTER: &str = "tcp://192.0.2.1:5010";
const OTHER: &str = "tcp://192.0.2.2:5010";
const LIFETIME: Duration = Duration::from_secs(600);

fn answer(router: &str, generation: u64) -> Answer {
    Answer {
        router: RouterLife {
            name: RouterName::new(router).unwrap(),
            generation: Some(Generation(generation)),
            instance: None,
        },
        addresses: vec!["fd00::1".parse().unwrap()],
        lifetime: LIFETIME,
        segments: 2,
    }
}

impl Bench {
    fn new(candidates: Vec<Candidate>) -> Self {
        let config = AttachmentConfig {
            candidates,
            timing: Timing::default(),
            seed: 7,
        };
        Self {
            machine: AttachmentMachine::new(config),
            now: Mono::from_secs(1),
            effects: Vec::new(),
        }
    }

    fn one() -> Self {
        Self::new(vec![Candidate::Url(ROUTER.into())])
    }

    fn now(&self) -> Now {
        Now {
            mono: self.now,
            wall: Wall(0),
        }
    }

    fn give(&mut self, input: Input) {
        let mut out = Outbox::default();
        self.machine.handle(input, self.now(), &mut out);
        self.effects = out.take();
    }

    /// Jumps to the next deadline and wakes.
    fn step(&mut self) -> &'static str {
        let (at, reason) = self.machine.next_wake().expect("a deadline");
        self.now = self.now.max(at);
        let mut out = Outbox::default();
        self.machine.wake(self.now(), &mut out);
        self.effects = out.take();
        reason
    }

    /// Steps until an effect other than a look at the data plane appears.
    fn step_to_action(&mut self) {
        for _ in 0..10_000 {
            self.step();
            self.effects
                .retain(|effect| !matches!(effect, Effect::Sample | Effect::Probe));
            if !self.effects.is_empty() {
                return;
            }
        }
        panic!("nothing happened");
    }

    /// Steps for `duration`, answering every sample with a receipt just now.
    fn live_on(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.machine.next_wake().is_some_and(|(at, _)| at <= end) {
            self.step();
            if self.effects.contains(&Effect::Sample) {
                let seen = Some(self.now);
                self.give(Input::Traffic {
                    last_send: seen,
                    last_receipt: seen,
                });
            }
        }
        self.now = end;
    }

    fn request(&self) -> (Ticket, String, RequestKind) {
        self.effects
            .iter()
            .find_map(|effect| match effect {
                Effect::Request { ticket, url, kind } => Some((*ticket, url.clone(), *kind)),
                _ => None,
            })
            .unwrap_or_else(|| panic!("no request in {:?}", self.effects))
    }

    fn answer(&mut self, result: Result<Answer, Failure>) {
        let (ticket, ..) = self.request();
        self.give(Input::Answered { ticket, result });
    }

    fn install(&mut self, ok: bool) {
        let ticket = self
            .effects
            .iter()
            .find_map(|effect| match effect {
                Effect::Install { ticket } => Some(*ticket),
                _ => None,
            })
            .unwrap_or_else(|| panic!("no install in {:?}", self.effects));
        self.give(Input::Installed { ticket, ok });
    }

    /// Takes a monitor ticket out of the last effects.
    fn monitor(&self) -> Ticket {
        self.effects
            .iter()
            .find_map(|effect| match effect {
                Effect::Monitor { ticket, .. } => Some(*ticket),
                _ => None,
            })
            .unwrap_or_else(|| panic!("no monitor in {:?}", self.effects))
    }

    fn close_ticket(&self) -> Ticket {
        self.effects
            .iter()
            .find_map(|effect| match effect {
                Effect::Close { ticket, .. } => Some(*ticket),
                _ => None,
            })
            .unwrap_or_else(|| panic!("no close in {:?}", self.effects))
    }

    /// Joins at the first candidate; returns the monitor's ticket.
    fn join(&mut self) -> Ticket {
        self.give(Input::Start);
        self.answer(Ok(answer("red-east", 1)));
        self.install(true);
        let monitor = self.monitor();
        self.give(Input::Monitor {
            ticket: monitor,
            event: MonitorEvent::Opened,
        });
        assert_eq!(self.machine.state(), State::Up);
        monitor
    }
}

#[test]
fn a_join_asks_installs_and_monitors() {
    let mut bench = Bench::one();
    bench.give(Input::Start);
    let (_, url, kind) = bench.request();
    assert_eq!((url.as_str(), kind), (ROUTER, RequestKind::First));
    bench.answer(Ok(answer("red-east", 1)));
    assert_eq!(bench.machine.state(), State::Joining);
    bench.install(true);
    bench.monitor();
    assert_eq!(bench.machine.state(), State::Up);
}

#[test]
fn refresh_follows_the_expiry_of_the_tokens() {
    let mut bench = Bench::one();
    bench.join();
    let joined = bench.now;
    loop {
        if bench.step() == "refresh" {
            break;
        }
        let seen = Some(bench.now);
        bench.give(Input::Traffic {
            last_send: seen,
            last_receipt: seen,
        });
    }
    assert_eq!(bench.now, joined + LIFETIME / 5);
    assert_eq!(bench.request().2, RequestKind::Refresh);
    assert_eq!(
        refresh_after(Duration::from_secs(6), 1),
        Duration::from_secs(2)
    );
}

#[test]
fn nothing_is_done_while_both_facts_are_up() {
    let mut bench = Bench::one();
    bench.join();
    bench.live_on(Duration::from_secs(60));
    assert_eq!(bench.machine.state(), State::Up);
}

#[test]
fn lost_control_is_refreshed_and_traffic_is_kept() {
    let mut bench = Bench::one();
    let monitor = bench.join();
    bench.give(Input::Monitor {
        ticket: monitor,
        event: MonitorEvent::Ended,
    });
    assert_eq!(
        bench.machine.state(),
        State::Healing {
            control: false,
            data: true
        }
    );
    for _ in 0..3 {
        bench.step_to_action();
        assert_eq!(bench.request().2, RequestKind::Refresh);
        let seen = Some(bench.now);
        bench.answer(Err(Failure::Unreachable));
        assert!(bench.effects.is_empty());
        bench.give(Input::Traffic {
            last_send: seen,
            last_receipt: seen,
        });
    }
    bench.step_to_action();
    bench.answer(Ok(answer("red-east", 1)));
    bench.install(true);
    bench.monitor();
    assert_eq!(bench.machine.state(), State::Up);
}

#[test]
fn lost_data_closes_and_takes_the_next_candidate() {
    let mut bench = Bench::new(vec![
        Candidate::Url(ROUTER.into()),
        Candidate::Url(OTHER.into()),
    ]);
    bench.join();
    let sent = bench.now;
    bench.now = bench.now + Duration::from_millis(500);
    bench.give(Input::Traffic {
        last_send: Some(sent),
        last_receipt: None,
    });
    bench.now = bench.now + Timing::default().data_down_after;
    bench.give(Input::Traffic {
        last_send: Some(bench.now),
        last_receipt: None,
    });
    let ticket = bench.close_ticket();
    assert!(bench.effects.contains(&Effect::StopMonitor));
    bench.give(Input::Closed { ticket, ok: true });
    bench.step_to_action();
    let (_, url, kind) = bench.request();
    assert_eq!((url.as_str(), kind), (OTHER, RequestKind::Reselect));
}

#[test]
fn with_both_down_the_same_router_is_tried_first_and_then_the_next() {
    let mut bench = Bench::new(vec![
        Candidate::Url(ROUTER.into()),
        Candidate::Url(OTHER.into()),
    ]);
    bench.join();
    bench.give(Input::DataPathLost);
    // The end of the stream has not been seen yet, so a Close goes out first; it reaches nobody.
    let ticket = bench.close_ticket();
    bench.give(Input::Closed { ticket, ok: false });
    let start = bench.now;
    let mut urls = Vec::new();
    while urls.last().is_none_or(|url| url != OTHER) {
        bench.step_to_action();
        let (_, url, kind) = bench.request();
        assert_eq!(kind, RequestKind::Reselect);
        urls.push(url);
        bench.answer(Err(Failure::Unreachable));
    }
    assert!(
        urls.len() > 2 && urls.iter().rev().skip(1).all(|url| url == ROUTER),
        "{urls:?}"
    );
    assert!(bench.now.saturating_since(start) >= Timing::default().sticky);
}

#[test]
fn a_restarted_local_router_is_found_within_its_short_back_off() {
    let mut bench = Bench::new(vec![Candidate::Url("unix:///run/nsm.sock".into())]);
    let monitor = bench.join();
    bench.live_on(Duration::from_secs(10));
    bench.give(Input::Monitor {
        ticket: monitor,
        event: MonitorEvent::Ended,
    });
    bench.give(Input::DataPathLost);
    let mut gaps = Vec::new();
    for _ in 0..90 {
        let before = bench.now;
        bench.step_to_action();
        gaps.push(bench.now.saturating_since(before));
        bench.answer(Err(Failure::Unreachable));
    }
    let timing = Timing::default();
    assert!(
        gaps[..20].iter().all(|gap| *gap <= timing.local_retry_max),
        "{gaps:?}"
    );
    assert!(
        gaps[80..].iter().all(|gap| *gap >= timing.retry_max / 2),
        "one that stays away is sought seldom: {gaps:?}"
    );
}

#[test]
fn the_registry_is_asked_and_its_urls_are_tried_in_turn() {
    let mut bench = Bench::new(vec![Candidate::Registry]);
    bench.give(Input::Start);
    let [Effect::Find { ticket }] = bench.effects[..] else {
        panic!("{:?}", bench.effects)
    };
    bench.give(Input::Found {
        ticket,
        result: Ok(vec![ROUTER.into(), OTHER.into()]),
    });
    assert_eq!(bench.request().1, ROUTER);
    bench.answer(Err(Failure::Unreachable));
    assert_eq!(bench.request().1, OTHER);
    bench.answer(Err(Failure::Refused));
    bench.step_to_action();
    assert!(matches!(bench.effects[..], [Effect::Find { .. }]));
}

#[test]
fn a_refused_answer_is_closed_and_asked_for_again_later() {
    let mut bench = Bench::one();
    bench.give(Input::Start);
    bench.answer(Err(Failure::BadAnswer));
    let ticket = bench.close_ticket();
    bench.give(Input::Closed { ticket, ok: true });
    assert!(bench.effects.is_empty());
    assert_eq!(bench.step(), "retry");
    assert_eq!(bench.request().2, RequestKind::First);
}

#[test]
fn an_older_life_of_a_known_router_is_not_taken() {
    let mut bench = Bench::one();
    let monitor = {
        bench.give(Input::Start);
        bench.answer(Ok(answer("red-east", 5)));
        bench.install(true);
        bench.monitor()
    };
    bench.give(Input::Monitor {
        ticket: monitor,
        event: MonitorEvent::Gone,
    });
    bench.step_to_action();
    bench.answer(Ok(answer("red-east", 4)));
    bench.close_ticket();
}

#[test]
fn the_router_may_ask_for_a_refresh_but_not_without_end() {
    let mut bench = Bench::one();
    let monitor = bench.join();
    let mut asked = 0;
    let start = bench.now;
    for _ in 0..50 {
        bench.give(Input::Monitor {
            ticket: monitor,
            event: MonitorEvent::RefreshRequested,
        });
        if bench.effects.is_empty() {
            bench.step_to_action();
        }
        asked += 1;
        bench.answer(Ok(answer("red-east", 1)));
        bench.install(true);
    }
    assert!(bench.now.saturating_since(start) >= Duration::from_millis(200) * (asked - 2));
}

#[test]
fn stop_closes_once_and_leaves_no_timer() {
    let mut bench = Bench::one();
    bench.join();
    bench.give(Input::Stop);
    let ticket = bench.close_ticket();
    assert!(!bench.effects.contains(&Effect::Uninstall));
    bench.give(Input::Closed { ticket, ok: true });
    assert_eq!(bench.effects, [Effect::Uninstall]);
    assert_eq!(bench.machine.state(), State::Stopped);
    assert_eq!(bench.machine.next_wake(), None);
    bench.give(Input::Start);
    assert!(bench.effects.is_empty());
}

#[test]
fn stop_during_a_request_closes_what_it_opened() {
    let mut bench = Bench::one();
    bench.give(Input::Start);
    let (ticket, ..) = bench.request();
    bench.give(Input::Stop);
    assert!(bench.effects.is_empty());
    bench.give(Input::Answered {
        ticket,
        result: Ok(answer("red-east", 1)),
    });
    let ticket = bench.close_ticket();
    bench.give(Input::Closed { ticket, ok: true });
    assert_eq!(bench.machine.state(), State::Stopped);
}

#[test]
fn answers_after_their_deadline_are_ignored() {
    let mut bench = Bench::one();
    bench.give(Input::Start);
    let (ticket, ..) = bench.request();
    assert_eq!(bench.step(), "call deadline");
    bench.give(Input::Answered {
        ticket,
        result: Ok(answer("red-east", 1)),
    });
    assert_eq!(bench.machine.held(), None);
}

/// One thing the world may do to the machine.
#[derive(Clone, Debug)]
enum Event {
    Answer(bool),
    Bad,
    Install(bool),
    Monitor(MonitorEvent),
    Traffic(bool),
    PathLost,
    Wait,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<bool>().prop_map(Event::Answer),
        Just(Event::Bad),
        any::<bool>().prop_map(Event::Install),
        prop_oneof![
            Just(MonitorEvent::Opened),
            Just(MonitorEvent::Gone),
            Just(MonitorEvent::Down),
            Just(MonitorEvent::RefreshRequested),
            Just(MonitorEvent::ReselectRequested),
            Just(MonitorEvent::Ended),
        ]
        .prop_map(Event::Monitor),
        any::<bool>().prop_map(Event::Traffic),
        Just(Event::PathLost),
        Just(Event::Wait),
    ]
}

/// Runs a script; returns the trace. Checks on the way that at most one call is outstanding,
/// that effects per input are few and that no deadline lies in the past after a wake.
fn run(script: &[Event]) -> Vec<String> {
    let mut bench = Bench::new(vec![
        Candidate::Url(ROUTER.into()),
        Candidate::Registry,
        Candidate::Url("unix:///run/nsm.sock".into()),
    ]);
    let mut trace = Vec::new();
    let mut pending: Option<Effect> = None;
    let mut monitor = None;
    bench.give(Input::Start);
    for event in script {
        for effect in &bench.effects {
            match effect {
                Effect::Find { .. }
                | Effect::Request { .. }
                | Effect::Install { .. }
                | Effect::Close { .. } => pending = Some(effect.clone()),
                Effect::Monitor { ticket, .. } => monitor = Some(*ticket),
                Effect::StopMonitor => monitor = None,
                Effect::Uninstall => panic!("never asked to stop"),
                Effect::Sample | Effect::Probe => {}
            }
        }
        let calls = bench
            .effects
            .iter()
            .filter(|effect| {
                matches!(
                    effect,
                    Effect::Find { .. }
                        | Effect::Request { .. }
                        | Effect::Install { .. }
                        | Effect::Close { .. }
                )
            })
            .count();
        assert!(
            calls <= 1 && bench.effects.len() <= 5,
            "{:?}",
            bench.effects
        );
        let input = match (event, pending.take()) {
            (Event::Answer(ok), Some(Effect::Find { ticket })) => {
                let result = if *ok {
                    Ok(vec![OTHER.into()])
                } else {
                    Err(Failure::Unreachable)
                };
                Some(Input::Found { ticket, result })
            }
            (Event::Answer(ok), Some(Effect::Request { ticket, .. })) => {
                let result = if *ok {
                    Ok(answer("red-east", 1))
                } else {
                    Err(Failure::Refused)
                };
                Some(Input::Answered { ticket, result })
            }
            (Event::Bad, Some(Effect::Request { ticket, .. })) => Some(Input::Answered {
                ticket,
                result: Err(Failure::BadAnswer),
            }),
            (Event::Answer(ok), Some(Effect::Close { ticket, .. })) => {
                Some(Input::Closed { ticket, ok: *ok })
            }
            (Event::Install(ok), Some(Effect::Install { ticket })) => {
                Some(Input::Installed { ticket, ok: *ok })
            }
            (other, kept) => {
                pending = kept;
                match other {
                    Event::Monitor(event) => monitor.map(|ticket| Input::Monitor {
                        ticket,
                        event: *event,
                    }),
                    Event::Traffic(answered) => Some(Input::Traffic {
                        last_send: Some(bench.now),
                        last_receipt: answered.then_some(bench.now),
                    }),
                    Event::PathLost => Some(Input::DataPathLost),
                    Event::Answer(_) | Event::Bad | Event::Install(_) | Event::Wait => None,
                }
            }
        };
        match input {
            Some(input) => bench.give(input),
            None => {
                bench.step();
                let next = bench.machine.next_wake();
                assert!(
                    next.is_some_and(|(at, _)| at > bench.now),
                    "{next:?} at {}",
                    bench.now
                );
            }
        }
        trace.push(format!(
            "{} {:?} {:?}",
            bench.now,
            bench.machine.state(),
            bench.effects
        ));
    }
    // Whatever happened, leaving ends and leaves nothing.
    bench.give(Input::Stop);
    for _ in 0..4 {
        if bench.machine.next_wake().is_some() {
            bench.step();
        }
    }
    assert_eq!(bench.machine.state(), State::Stopped);
    assert_eq!(bench.machine.next_wake(), None);
    trace
}

proptest! {
    #[test]
    fn any_script_is_survived_and_gives_the_same_trace_twice(
        script in proptest::collection::vec(event(), 0..200),
    ) {
        prop_assert_eq!(run(&script), run(&script));
    }
}
