//! Logs, and traces where somebody collects them.

use std::io::IsTerminal;

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{ConfigError, LogArgs, LogFormat};
use crate::job::JobId;

/// The variable that names the collector of traces, as OpenTelemetry defines it.
const COLLECTOR: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Sends what is left of the traces when dropped.
#[must_use]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown()
        {
            eprintln!("the last traces could not be sent: {error}");
        }
    }
}

/// Starts logs to standard error and, where `OTEL_EXPORTER_OTLP_ENDPOINT` is set, traces by OTLP over HTTP. Must
/// be called in an async runtime.
///
/// # Errors
/// When the filter or the collector's address makes no sense.
pub fn init(service: &'static str, logs: &LogArgs) -> Result<Telemetry, ConfigError> {
    let filter = EnvFilter::try_new(&logs.log)
        .map_err(|error| ConfigError(format!("BOXREEL_LOG={:?} is no filter: {error}", logs.log)))?;
    let json = match logs.log_format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Pretty => false,
        LogFormat::Json => true,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if json {
        lines.json().flatten_event(true).with_filter(filter).boxed()
    } else {
        lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed()
    };
    let provider = std::env::var_os(COLLECTOR).map(|_| provider(service)).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        // The exporter's own requests must not become spans that are exported in turn.
        let filter = EnvFilter::new("info,hyper=off,reqwest=off,h2=off,opentelemetry=off");
        tracing_opentelemetry::layer().with_tracer(provider.tracer("boxreel")).with_filter(filter)
    });
    tracing_subscriber::registry()
        .with(lines)
        .with(traces)
        .try_init()
        .map_err(|error| ConfigError(format!("logs cannot be started: {error}")))?;
    Ok(Telemetry(provider))
}

fn provider(service: &'static str) -> Result<SdkTracerProvider, ConfigError> {
    super::crypto();
    let exporter = SpanExporter::builder()
        .with_http()
        .build()
        .map_err(|error| ConfigError(format!("{COLLECTOR} cannot be used: {error}")))?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(format!("boxreel-{service}")).build())
        .build())
}

/// Makes `span` part of the job's trace. The trace's id follows from the job's, so that all services' spans come
/// together without passing anything on.
pub fn join_trace(span: &Span, job: JobId) {
    let mut trace = [0; 16];
    trace[4..].copy_from_slice(&job.bytes());
    trace[0] = 0xb0;
    let mut root = [0; 8];
    root.copy_from_slice(&job.bytes()[4..]);
    let context = SpanContext::new(
        TraceId::from_bytes(trace),
        SpanId::from_bytes(root),
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    let parent = opentelemetry::Context::new().with_remote_span_context(context);
    // Fails where no traces are collected, which is nothing to speak of.
    let _ = span.set_parent(parent);
}
