//! Requests that share a model get the answers that they get alone, and each hears of its end once.

use hurtle_engine::constraint::{Constraint, ConstraintError, TokenMask};
use hurtle_engine::sampler::{Sampled, SamplerParams};
use hurtle_engine::{
    Arithmetic, Engine, EngineOptions, Event, Finished, GenerationParams, KvType, PrefixDir,
    Request, Service, ServiceOptions, StopReason, SubmitError, Ticket,
};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

fn golden(threads: usize) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs/llama.gguf");
    let options =
        EngineOptions { threads: Some(threads), ctx_size: Some(1024), ..Default::default() };
    Engine::load(&path, &options).unwrap()
}

fn params(seed: u64, n_predict: usize) -> GenerationParams {
    let sampler =
        SamplerParams { temp: 1.0, seed: Some(seed), ignore_eos: true, ..Default::default() };
    GenerationParams { sampler, n_predict: Some(n_predict), ..Default::default() }
}

/// `n` tokens; equal `start`s give equal beginnings.
fn prompt(engine: &Engine, start: usize, n: usize) -> Vec<u32> {
    let n_vocab = engine.model().hparams().n_vocab;
    (0..n).map(|i| ((start + 1) * 31 + i * i * 7 + i) as u32 % n_vocab as u32).collect()
}

struct Answer {
    ids: Vec<u32>,
    text: String,
    finished: Finished,
}

fn submit(service: &Service, request: Request) -> Result<(Ticket, Receiver<Event>), SubmitError> {
    let (sender, receiver) = channel();
    let ticket = service.submit(request, Box::new(move |event| drop(sender.send(event))))?;
    Ok((ticket, receiver))
}

/// Hears a request to its end, and that nothing follows.
fn hear(events: &Receiver<Event>) -> Answer {
    let (mut ids, mut text) = (Vec::new(), String::new());
    loop {
        match events.recv_timeout(Duration::from_secs(60)).expect("an event") {
            Event::Token(token, _) => {
                ids.push(token.id);
                text.push_str(&token.text);
            }
            Event::Finished(finished) => {
                text.push_str(&finished.text_tail);
                assert!(events.recv_timeout(Duration::from_secs(60)).is_err(), "after the end");
                return Answer { ids, text, finished };
            }
            Event::Failed(error) => panic!("{error}"),
            Event::Started { .. } | Event::Prompt { .. } | Event::PromptLogprobs(_) => {}
        }
    }
}

fn ask(service: &Service, request: Request) -> Answer {
    let (_ticket, events) = submit(service, request).unwrap();
    hear(&events)
}

/// What the request gives alone.
fn alone(engine: &Engine, prompt: &[u32], params: &GenerationParams) -> (Vec<u32>, String) {
    let generation = engine.session().generate(prompt, params, &mut |_| ControlFlow::Continue(()));
    let generation = generation.unwrap();
    (generation.token_ids, generation.text)
}

/// Sends many requests at once and compares each with what it gives alone.
fn check(engine: Engine, options: ServiceOptions, lengths: &[(usize, usize)]) -> Service {
    let jobs: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(i, &(n_prompt, n_predict))| {
            (prompt(&engine, i % 3, n_prompt), params(i as u64, n_predict))
        })
        .collect();
    let expected: Vec<_> = jobs.iter().map(|(ids, params)| alone(&engine, ids, params)).collect();
    let service = Service::start(engine, options).unwrap();
    for round in 0..2 {
        let running: Vec<_> = jobs
            .iter()
            .enumerate()
            .map(|(i, (ids, params))| {
                let client = Some(format!("client {}", i % 2));
                let request = Request { client, ..Request::new(ids.clone(), params.clone()) };
                submit(&service, request).unwrap()
            })
            .collect();
        for (i, (_ticket, events)) in running.iter().enumerate() {
            let answer = hear(events);
            assert_eq!((answer.ids, answer.text), expected[i], "round {round}, request {i}");
            assert_eq!(answer.finished.stop_reason, StopReason::Length);
        }
    }
    settled(&service);
    service
}

/// Waits until nothing runs; then all memory in use is the prefix cache's.
fn settled(service: &Service) {
    let start = Instant::now();
    loop {
        let stats = service.stats();
        if stats.slots.is_empty() && stats.waiting == 0 {
            assert_eq!(stats.kv_bytes, stats.prefix_bytes, "pages that nobody needs");
            assert!(stats.kv_bytes <= stats.kv_budget);
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const LENGTHS: [(usize, usize); 8] =
    [(1, 40), (200, 30), (70, 70), (64, 64), (130, 20), (65, 100), (300, 9), (7, 130)];

#[test]
fn batched_and_cached_answers_are_those_of_a_session() {
    for threads in [1, 3] {
        for chunk in [5, 512] {
            let options =
                ServiceOptions { max_sequences: 5, chunk: Some(chunk), ..Default::default() };
            let service = check(golden(threads), options, &LENGTHS);
            assert!(service.stats().prefix_hits > 0);
        }
    }
}

#[test]
fn sequences_that_had_to_give_up_their_memory_go_on_as_if_nothing_had_happened() {
    let engine = golden(2);
    let page = engine.model().kv_cache(Default::default(), Default::default()).page_bytes() as u64;
    // 30 + 90 tokens take two pages each; when all have begun, one is there for each.
    let options = ServiceOptions { kv_bytes: Some(7 * page), ..Default::default() };
    let service = check(engine, options, &[(30, 90), (60, 120), (100, 90), (5, 250), (90, 300)]);
    assert!(service.stats().preemptions > 0);
}

#[test]
fn the_second_turn_processes_only_what_is_new() {
    let service = Service::start(golden(2), ServiceOptions::default()).unwrap();
    let mut ids = prompt(service.engine(), 0, 100);
    let first = ask(&service, Request::new(ids.clone(), params(1, 30)));
    assert_eq!(first.finished.n_cached, 0);
    ids.extend(&first.ids);
    let known = ids.len() - 1;
    ids.extend([1, 2, 3]);
    let second = ask(&service, Request::new(ids.clone(), params(2, 30)));
    assert_eq!(second.finished.n_cached, known, "all but the last token, which was not processed");
    assert_eq!((second.ids, second.text), alone(service.engine(), &ids, &params(2, 30)));

    // Of equal prompts that come together, the last need not be processed.
    let long = prompt(service.engine(), 5, 900);
    let requests = (0..3).map(|seed| Request::new(long.clone(), params(seed, 5)));
    let running: Vec<_> = requests.map(|request| submit(&service, request).unwrap()).collect();
    let cached = running.iter().map(|(_ticket, events)| hear(events).finished.n_cached);
    assert_eq!(cached.collect::<Vec<_>>()[2], 896);

    let request = Request { cache_prompt: false, ..Request::new(ids.clone(), params(2, 5)) };
    assert_eq!(ask(&service, request).finished.n_cached, 0);
}

#[test]
fn prefixes_make_room_for_others() {
    let engine = golden(1);
    let page = engine.model().kv_cache(Default::default(), Default::default()).page_bytes() as u64;
    let options = ServiceOptions { kv_bytes: Some(4 * page), ..Default::default() };
    let service = Service::start(engine, options).unwrap();
    for start in 0..6 {
        let ids = prompt(service.engine(), start, 100 + start);
        let answer = ask(&service, Request::new(ids.clone(), params(1, 50)));
        assert_eq!((answer.ids, answer.text), alone(service.engine(), &ids, &params(1, 50)));
        settled(&service);
    }
    let ids = prompt(service.engine(), 0, 300);
    let refused = submit(&service, Request::new(ids, params(1, 1))).unwrap_err();
    assert!(matches!(refused, SubmitError::KvMemory { needed: 301, budget: 256 }), "{refused}");
}

fn request_with_logprobs(ids: &[u32]) -> Request {
    Request { logprobs: Some(5), ..Request::new(ids.to_vec(), params(3, 40)) }
}

/// Tokens and log-probabilities, and how many tokens of the prompt were known.
fn ask_with_logprobs(service: &Service, ids: &[u32]) -> (String, usize) {
    let (_ticket, events) = submit(service, request_with_logprobs(ids)).unwrap();
    let mut tokens = Vec::new();
    loop {
        match events.recv_timeout(Duration::from_secs(60)).expect("an event") {
            Event::Token(token, _) => tokens.push(token),
            Event::Finished(finished) => return (format!("{tokens:?}"), finished.n_cached),
            Event::Failed(error) => panic!("{error}"),
            Event::Started { .. } | Event::Prompt { .. } | Event::PromptLogprobs(_) => {}
        }
    }
}

/// The log-probabilities of a prompt, and the answer behind it.
fn score(events: &Receiver<Event>) -> (Vec<Sampled>, Vec<u32>) {
    let (mut scores, mut ids) = (Vec::new(), Vec::new());
    loop {
        match events.recv_timeout(Duration::from_secs(60)).expect("an event") {
            Event::PromptLogprobs(next) => {
                assert!(ids.is_empty(), "before the answer");
                scores.extend(next);
            }
            Event::Token(token, _) => ids.push(token.id),
            Event::Finished(_) => return (scores, ids),
            Event::Failed(error) => panic!("{error}"),
            Event::Started { .. } | Event::Prompt { .. } => {}
        }
    }
}

#[test]
fn prompts_are_scored_as_their_tokens_would_be_sampled() {
    let engine = golden(1);
    let ids = prompt(&engine, 0, 150);
    let expected_answer = alone(&engine, &ids, &params(3, 150)).0;
    let page = engine.model().kv_cache(Default::default(), Default::default()).page_bytes() as u64;
    // Of all tokens behind each beginning.
    let n_vocab = engine.model().hparams().n_vocab;
    let service = Service::start(engine, ServiceOptions::default()).unwrap();
    let expected: Vec<Sampled> = (1..ids.len())
        .map(|n| {
            let beginning = Request::new(ids[..n].to_vec(), params(0, 1));
            let request = Request { logprobs: Some(n_vocab), ..beginning };
            let (_ticket, events) = submit(&service, request).unwrap();
            let mut all = events.iter().find_map(|event| match event {
                Event::Token(token, _) => token.logprobs,
                _ => None,
            });
            let mut top = std::mem::take(&mut all.as_mut().expect("a token").top);
            let token = *top.iter().find(|token| token.id == ids[n]).expect("a token");
            top.truncate(3);
            Sampled { token, top }
        })
        .collect();
    // Alone in whole and in pieces, with a warm cache, and four where there is memory for two.
    for (chunk, pages, n) in [(512, 1000, 1), (7, 1000, 2), (64, 9, 4)] {
        let kv_bytes = Some(pages * page);
        let options = ServiceOptions { chunk: Some(chunk), kv_bytes, ..Default::default() };
        let service = Service::start(golden(1), options).unwrap();
        ask(&service, Request::new(ids.clone(), params(3, 2)));
        let request =
            || Request { prompt_logprobs: Some(3), ..Request::new(ids.clone(), params(3, 150)) };
        let running: Vec<_> = (0..n).map(|_| submit(&service, request()).unwrap()).collect();
        for (_ticket, events) in &running {
            let (scores, answer) = score(events);
            assert_eq!(scores.len(), expected.len(), "chunk {chunk}");
            assert!(scores == expected, "chunk {chunk}");
            assert_eq!(answer, expected_answer);
        }
        assert_eq!(service.stats().preemptions > 0, pages == 9, "{:?}", service.stats());
    }
}

#[test]
fn saved_prefixes_give_the_same_bits_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let options = || {
        let prefix_dir = Some(PrefixDir::open(folder.path(), 1 << 30).unwrap());
        ServiceOptions { prefix_dir, ..Default::default() }
    };
    let ids = prompt(&golden(1), 0, 300);
    let first = {
        let service = Service::start(golden(1), options()).unwrap();
        let answer = ask_with_logprobs(&service, &ids);
        service.shutdown(Duration::from_secs(60));
        answer
    };
    let again = ask_with_logprobs(&Service::start(golden(2), options()).unwrap(), &ids);
    assert_eq!(again, (first.0.clone(), 256), "whole pages, with another number of threads");

    // Dropping saves as well, answers included: 300 + 39 tokens make 5 pages.
    let mut longer = ids.clone();
    let fresh = Service::start(golden(1), ServiceOptions::default()).unwrap();
    longer.extend(ask(&fresh, Request::new(ids.clone(), params(3, 40))).ids);
    let answer = ask_with_logprobs(&Service::start(golden(1), options()).unwrap(), &longer);
    assert_eq!(answer, (ask_with_logprobs(&fresh, &longer).0, 320));

    // Other arithmetic or other types of keys: other bits, so that nothing is found.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs/llama.gguf");
    let base = || EngineOptions { ctx_size: Some(1024), threads: Some(1), ..Default::default() };
    let others = [
        EngineOptions { arithmetic: Arithmetic::Exact, ..base() },
        EngineOptions { kv_type_k: KvType::F16, ..base() },
    ];
    for other in others {
        let service = Service::start(Engine::load(&path, &other).unwrap(), options()).unwrap();
        assert_eq!(ask_with_logprobs(&service, &ids).1, 0, "{other:?}");
    }

    // What is damaged is computed.
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[200] ^= 4;
        std::fs::write(&path, bytes).unwrap();
    }
    let service = Service::start(golden(1), options()).unwrap();
    assert_eq!(ask_with_logprobs(&service, &ids), (first.0, 0));
}

#[test]
fn what_memory_has_no_room_for_comes_back_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let page = golden(1).model().kv_cache(Default::default(), Default::default()).page_bytes();
    let prefix_dir = Some(PrefixDir::open(folder.path(), 1 << 30).unwrap());
    let kv_bytes = Some(6 * page as u64);
    let options = ServiceOptions { kv_bytes, prefix_dir, ..Default::default() };
    let service = Service::start(golden(1), options).unwrap();
    let prompts: Vec<_> = (0..4).map(|start| prompt(service.engine(), start, 200)).collect();
    let first: Vec<_> = prompts.iter().map(|ids| ask_with_logprobs(&service, ids)).collect();
    assert!(first.iter().all(|(_, n_cached)| *n_cached == 0));
    for _ in 0..2 {
        for (ids, first) in prompts.iter().zip(&first) {
            assert_eq!(ask_with_logprobs(&service, ids), (first.0.clone(), 192));
            settled(&service);
        }
    }
    // Many at once, more than there is memory for.
    let running = prompts.iter().map(|ids| submit(&service, request_with_logprobs(ids)).unwrap());
    for (_ticket, events) in running.collect::<Vec<_>>() {
        hear(&events);
    }
    settled(&service);
}

#[test]
fn what_cannot_be_served_is_refused_with_the_reason() {
    let options = ServiceOptions { max_sequences: 1, queue: 2, ..Default::default() };
    let service = Service::start(golden(1), options).unwrap();
    let refuse = |ids: Vec<u32>, params| submit(&service, Request::new(ids, params)).unwrap_err();
    assert!(matches!(refuse(vec![], params(0, 1)), SubmitError::Prompt(_)));
    assert!(matches!(refuse(vec![0; 1024], params(0, 1)), SubmitError::Prompt(_)));
    assert!(matches!(refuse(vec![u32::MAX], params(0, 1)), SubmitError::Prompt(_)));
    let bad = GenerationParams {
        sampler: SamplerParams { top_p: f32::NAN, ..Default::default() },
        ..Default::default()
    };
    assert!(matches!(refuse(vec![1], bad), SubmitError::Sampler(_)));

    let mut taken = Vec::new();
    let full = loop {
        match submit(&service, Request::new(vec![1], params(0, 500))) {
            Ok(accepted) => taken.push(accepted),
            Err(error) => break error,
        }
        assert!(taken.len() < 100, "the queue is never full");
    };
    assert!(matches!(full, SubmitError::QueueFull { waiting: 2 }), "{full}");
}

#[test]
fn dropped_tickets_and_deadlines_end_requests() {
    let service = Service::start(golden(1), ServiceOptions::default()).unwrap();
    let (ticket, events) = submit(&service, Request::new(vec![1], params(0, 1000))).unwrap();
    assert!(matches!(events.recv().unwrap(), Event::Started { n_prompt: 1, .. }));
    drop(ticket);
    let answer = hear(&events);
    assert_eq!(answer.finished.stop_reason, StopReason::Cancelled);
    assert!(answer.ids.len() < 1000);

    let request =
        Request { deadline: Some(Instant::now()), ..Request::new(vec![1], params(0, 1000)) };
    assert_eq!(ask(&service, request).finished.stop_reason, StopReason::Deadline);
    settled(&service);
}

#[test]
fn a_listener_that_panics_ends_only_its_own_request() {
    let service = Service::start(golden(1), ServiceOptions::default()).unwrap();
    let request = Request::new(vec![1], params(0, 1000));
    let _ticket = service.submit(request, Box::new(|_| panic!("a listener's own fault")));
    let answer = ask(&service, Request::new(vec![1, 2], params(3, 20)));
    assert_eq!((answer.ids, answer.text), alone(service.engine(), &[1, 2], &params(3, 20)));
    settled(&service);
}

#[test]
fn stop_strings_are_named_and_logprobs_given() {
    let service = Service::start(golden(1), ServiceOptions::default()).unwrap();
    let text = alone(service.engine(), &[1, 2], &params(3, 40)).1;
    let stop: String = text.chars().skip(5).take(2).collect();
    let stops = vec!["no such text".to_owned(), stop.clone()];
    let stopping = GenerationParams { stop: stops, ..params(3, 40) };
    let (_ticket, events) = submit(
        &service,
        Request { logprobs: Some(3), ..Request::new(vec![1, 2], stopping.clone()) },
    )
    .unwrap();
    let mut finished = None;
    for event in events {
        match event {
            Event::Token(token, _) => {
                let logprobs = token.logprobs.unwrap();
                assert_eq!((logprobs.token.id, logprobs.top.len()), (token.id, 3));
            }
            Event::Finished(end) => finished = Some(end),
            _ => {}
        }
    }
    let finished = finished.unwrap();
    assert_eq!(finished.stop_reason, StopReason::StopString);
    assert_eq!(finished.stop_string, Some(stop));
    let answer = ask(&service, Request::new(vec![1, 2], stopping.clone()));
    assert_eq!((answer.ids, answer.text), alone(service.engine(), &[1, 2], &stopping));
}

/// Allows multiples of 5 only, and so many of them.
struct Fives(usize);

impl Constraint for Fives {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        mask.clear();
        (0..mask.n_tokens() as u32).step_by(5).for_each(|id| mask.allow(id));
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<(), ConstraintError> {
        self.0 -= 1;
        if id.is_multiple_of(5) {
            Ok(())
        } else {
            Err(ConstraintError(format!("{id} is no multiple")))
        }
    }

    fn is_finished(&self) -> bool {
        self.0 == 0
    }
}

#[test]
fn constraints_decide_what_may_come_and_when_it_ends() {
    let service = Service::start(golden(1), ServiceOptions::default()).unwrap();
    for temp in [0.0, 1.0, 5.0] {
        let mut params = params(9, 100);
        params.sampler.temp = temp;
        let constraint: Option<Box<dyn Constraint>> = Some(Box::new(Fives(12)));
        let answer = ask(&service, Request { constraint, ..Request::new(vec![1, 2], params) });
        assert_eq!(answer.ids.len(), 12);
        assert!(answer.ids.iter().all(|id| id % 5 == 0), "{:?}", answer.ids);
        assert_eq!(answer.finished.stop_reason, StopReason::EndOfText);
    }
}

#[test]
fn a_shutdown_finishes_what_it_can_and_cancels_the_rest() {
    let service = Service::start(golden(1), ServiceOptions::default()).unwrap();
    let (_ticket, events) = submit(&service, Request::new(vec![1], params(0, 20))).unwrap();
    let report = service.shutdown(Duration::from_secs(60));
    assert_eq!(report.cancelled, 0);
    assert_eq!(hear(&events).finished.stop_reason, StopReason::Length);
    let refused = submit(&service, Request::new(vec![1], params(0, 1))).unwrap_err();
    assert!(matches!(refused, SubmitError::ShuttingDown));

    let options = ServiceOptions { max_sequences: 1, ..Default::default() };
    let service = Service::start(golden(1), options).unwrap();
    let requests: Vec<_> = (0..20)
        .map(|i| submit(&service, Request::new(vec![1], params(i, 1000))).unwrap())
        .collect();
    let report = service.shutdown(Duration::ZERO);
    assert!(report.cancelled > 0, "{report:?}");
    requests.iter().for_each(|(_ticket, events)| drop(hear(events)));
}

/// Panics when it is asked, or when it is dropped.
struct Faulty {
    when_asked: bool,
}

impl Constraint for Faulty {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        assert!(!self.when_asked, "a grammar's own fault");
        (0..mask.n_tokens() as u32).for_each(|id| mask.allow(id));
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<(), ConstraintError> {
        Ok(())
    }

    fn is_finished(&self) -> bool {
        false
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        assert!(self.when_asked || std::thread::panicking(), "a grammar's own fault");
    }
}

#[test]
fn faults_are_reported_and_nobody_waits_for_ever() {
    let service = Service::start(golden(1), ServiceOptions::default()).unwrap();
    let faulty = |when_asked| {
        let constraint: Option<Box<dyn Constraint>> = Some(Box::new(Faulty { when_asked }));
        Request { constraint, ..Request::new(vec![1, 2], params(0, 1)) }
    };
    let (_ticket, events) = submit(&service, faulty(true)).unwrap();
    assert!(matches!(events.iter().last(), Some(Event::Failed(_))));
    let answer = ask(&service, Request::new(vec![1, 2], params(3, 20)));
    assert_eq!((answer.ids, answer.text), alone(service.engine(), &[1, 2], &params(3, 20)));

    // Behind the steps of single requests, a fault ends the service.
    let (_ticket, other) = submit(&service, Request::new(vec![1], params(0, 1000))).unwrap();
    let (_ticket, _) = submit(&service, faulty(false)).unwrap();
    assert!(matches!(other.iter().last(), Some(Event::Failed(_))));
    let refused = submit(&service, Request::new(vec![1], params(0, 1))).unwrap_err();
    assert!(matches!(refused, SubmitError::ServiceFailed), "{refused}");
    service.shutdown(Duration::from_secs(60));
}

#[test]
fn a_real_model_gives_the_same_bits_to_many_as_to_one() {
    let file = "smollm2-135m-q4_1.gguf";
    let path = std::env::var_os("HURTLE_TEST_MODELS").map(|dir| Path::new(&dir).join(file));
    let Some(path) = path.filter(|path| path.exists()) else {
        let required = std::env::var_os("HURTLE_REQUIRE_MODELS").is_some();
        assert!(!required, "{file} is missing from HURTLE_TEST_MODELS");
        println!("skipped: {file} is not in HURTLE_TEST_MODELS; `cargo xtask test` fetches it");
        return;
    };
    let options = EngineOptions { threads: Some(2), ctx_size: Some(512), ..Default::default() };
    let engine = Engine::load(&path, &options).unwrap();
    let page = engine.model().kv_cache(Default::default(), Default::default()).page_bytes() as u64;
    let options =
        ServiceOptions { chunk: Some(48), kv_bytes: Some(8 * page), ..Default::default() };
    check(engine, options, &[(5, 12), (130, 8), (70, 20), (64, 5)]);
}
