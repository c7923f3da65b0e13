//! A collector of traces in one page: the standard OTLP service over gRPC, which prints every span it is sent as one line
//! of JSON. For the lab's story of traces, and for whoever wants to see what a migration sends:
//!
//! ```text
//! cargo run --package orchestrator --example collector -- 127.0.0.1:4317
//! ```

use std::{
    io::{self, Write as _},
    net::SocketAddr,
};

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
};
use serde_json::json;
use tonic::{Request, Response, Status, transport::Server};

struct Printer;

#[tonic::async_trait]
impl TraceService for Printer {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        // One piece of text, so that two calls don't mix their lines.
        let lines = lines(request.into_inner());
        let mut out = io::stdout().lock();
        out.write_all(lines.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn lines(request: ExportTraceServiceRequest) -> String {
    let mut lines = String::new();
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.unwrap_or_default().attributes;
        for span in of_resource
            .scope_spans
            .iter()
            .flat_map(|scope| &scope.spans)
        {
            let line = json!({
                "service": text(&resource, "service.name"), "node": text(&resource, "k8s.node.name"),
                "trace": hex(&span.trace_id), "span": hex(&span.span_id), "parent": hex(&span.parent_span_id),
                "name": span.name, "start": span.start_time_unix_nano, "end": span.end_time_unix_nano,
            });
            lines += &format!("{line}\n");
        }
    }
    lines
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    let Value::StringValue(text) = found.value.as_ref()?.value.as_ref()? else {
        return None;
    };
    Some(text.clone())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::main]
async fn main() -> Result<()> {
    let listen = std::env::args().nth(1).context("say where to listen")?;
    let listen: SocketAddr = listen.parse().context("understand where to listen")?;
    Server::builder()
        .add_service(TraceServiceServer::new(Printer))
        .serve(listen)
        .await
        .context("serve")
}
