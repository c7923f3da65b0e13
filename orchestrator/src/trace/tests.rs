use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use orchestrator_core::{
    id::{NodeName, PodRef, Revision},
    plan::Request,
};

use super::*;

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (Collector, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = Collector::default();
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector.clone()))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(server);
    (collector, endpoint)
}

fn span(name: &str, parent: &str, place: &str, from_ms: u64, to_ms: u64) -> Span {
    Span {
        name: name.to_owned(),
        place: place.to_owned(),
        parent: parent.to_owned(),
        start_unix_ns: from_ms * NS_PER_MS,
        end_unix_ns: to_ms * NS_PER_MS,
        attributes: BTreeMap::from([("bytes".to_owned(), "7".to_owned())]),
    }
}

fn migration() -> Migration {
    let pod = PodRef {
        namespace: "default".to_owned(),
        name: "kuard".to_owned(),
    };
    Migration {
        id: MigrationId::from("0af76519-16cd-43dd-8448-eb211c80319c"),
        object: pod.clone(),
        request: Request {
            pod,
            target: NodeName::from("node2"),
            freeze_max_ms: None,
            timeout_ms: None,
            dry_run: false,
            rounds_max: None,
            keep_checkpoint_ms: None,
        },
        plan: None,
        refusals: vec![],
        phase: Phase::RolledBack,
        revision: Revision(9),
        submitted: Revision(2),
        attempts: 1,
        attempted_ms: 0,
        entered: vec![
            (Phase::Planned, 1000),
            (Phase::Holding, 2000),
            (Phase::Releasing, 3000),
            (Phase::RolledBack, 4000),
        ],
        reason: None,
        doubt: None,
        stuck: None,
        rounds: Vec::new(),
        copying_ended: None,
        checkpoint: None,
        images: vec![],
        restored: None,
        unclean: None,
        left_over: None,
        kept: false,
        dead: Default::default(),
        spans: vec![
            span("request", "", "orchestrator", 900, 990),
            span("hold", "", "node1", 2100, 2900),
            span("dump", "hold", "node1", 2200, 2800),
        ],
    }
}

#[tokio::test]
async fn one_migration_is_one_trace_however_often_it_is_sent() {
    let (collector, endpoint) = collector().await;
    let mut exporter = Exporter::new(&endpoint).unwrap();
    let mut state = State::default();
    exporter.observe(&state, 5000).await;
    let migration = migration();
    state
        .migrations
        .insert(migration.id.clone(), Arc::new(migration.clone()));
    exporter.observe(&state, 5000).await;
    exporter.observe(&state, 6000).await;
    let received = |collector: &Collector| {
        let requests = collector.0.lock().unwrap();
        let mut spans = Vec::new();
        for resource in requests.iter().flat_map(|request| &request.resource_spans) {
            let service = format!("{:?}", resource.resource);
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                spans.push((service.clone(), span.clone()));
            }
        }
        spans
    };
    let once = received(&collector);
    assert_eq!(once.len(), 7, "root, three phases, three spans, once");
    let find = |name: &str| once.iter().find(|(_, span)| span.name == name).unwrap();
    let root = &find("migrate pod default/kuard").1;
    assert!(root.parent_span_id.is_empty() || root.parent_span_id == [0; 8]);
    assert_eq!(root.start_time_unix_nano, 900 * NS_PER_MS);
    for (_, span) in &once {
        assert_eq!(
            span.trace_id[..4],
            [0x0a, 0xf7, 0x65, 0x19],
            "the trace id is the migration's"
        );
    }
    assert_eq!(find("request").1.parent_span_id, root.span_id);
    assert_eq!(find("Holding").1.parent_span_id, root.span_id);
    assert_eq!(find("hold").1.parent_span_id, find("Holding").1.span_id);
    assert_eq!(find("dump").1.parent_span_id, find("hold").1.span_id);
    assert!(find("hold").0.contains("node1") && find("hold").0.contains("longshore-worker"));
    assert!(find("Holding").0.contains("longshore-orchestrator"));

    exporter.export(&migration).await.unwrap();
    let again = received(&collector);
    let ids: BTreeSet<Vec<u8>> = again.iter().map(|(_, span)| span.span_id.clone()).collect();
    assert_eq!((again.len(), ids.len()), (14, 7), "the same ids again");
}
