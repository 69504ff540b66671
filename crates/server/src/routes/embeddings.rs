//! Routes that make vectors and scores of texts.
use super::ollama::in_shape;
use super::{Shared, with_json};
use crate::embedder::{Embedded, TextVectors};
use crate::error::{ApiError, ErrorKind};
use crate::models::Lease;
use crate::wire::embeddings::{self, Embeddings};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/embeddings", post(openai))
        .route("/embeddings", post(llama_cpp))
        .route("/embedding", post(llama_cpp))
        .route("/v1/rerank", post(rerank))
        .route("/rerank", post(rerank))
        .route("/v1/reranking", post(rerank))
        .route("/reranking", post(rerank))
        .route("/api/embed", post(ollama))
        .route("/api/embeddings", post(ollama_old))
}

/// What came of a request.
struct Made {
    model: String,
    vectors: Vec<Value>,
    n_tokens: usize,
}

impl Shared {
    async fn embed(&self, model: &Lease, request: Embeddings) -> Result<Made, ApiError> {
        let Embeddings { inputs, shape, too_long, n_ctx, .. } = request;
        let pooling = match self.options.text_vectors {
            TextVectors::Own => None,
            TextVectors::Pooled(pooling) => Some(pooling),
            TextVectors::Tokens => {
                let message = "this server makes a vector of each token, which only /embedding tells\n\
                    hint: start it without --pooling none";
                return Err(ApiError::new(ErrorKind::Invalid, message));
            }
        };
        let queue = self.options.service.queue;
        let Embedded { vectors, n_tokens } =
            model.embed(inputs, too_long, n_ctx, pooling, queue).await?;
        Ok(Made { model: model.source.name.clone(), vectors: shape.vectors(vectors)?, n_tokens })
    }
}

async fn openai(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let request = embeddings::parse_embeddings(&body, false)?;
    let model = shared.model(request.model.as_deref()).await?;
    let made = shared.embed(&model, request).await?;
    Ok(with_json(&embeddings::openai(&made.model, made.vectors, made.n_tokens)))
}

async fn llama_cpp(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let request = embeddings::parse_embeddings(&body, true)?;
    let model = shared.model(request.model.as_deref()).await?;
    let texts = if shared.options.text_vectors == TextVectors::Tokens {
        let Embeddings { inputs, shape, .. } = request;
        let texts = model.embed_tokens(inputs, shared.options.service.queue).await?.vectors;
        texts.into_iter().map(|tokens| shape.of_tokens(tokens)).collect::<Result<_, _>>()?
    } else {
        let made = shared.embed(&model, request).await?;
        made.vectors.into_iter().map(|vector| vec![vector]).collect()
    };
    Ok(with_json(&embeddings::llama_cpp(texts)))
}

async fn rerank(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let request = embeddings::parse_rerank(&body)?;
    let model = shared.model(request.model.as_deref()).await?;
    let queue = shared.options.service.queue;
    let ranked = model.rank(request.query, request.documents.clone(), queue).await?;
    Ok(with_json(&request.reply.reply(&model.source.name, &request.documents, &ranked)))
}

async fn ollama(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let start = Instant::now();
        let request = embeddings::parse_ollama(&body, false)?;
        let name = request.model.clone();
        let model = shared.models.lease(request.model.as_deref(), request.keep_alive).await?;
        let load = start.elapsed();
        let made = shared.embed(&model, request).await?;
        Ok(with_json(&json!({
            "model": name,
            "embeddings": made.vectors,
            "total_duration": start.elapsed().as_nanos() as u64,
            "load_duration": load.as_nanos() as u64,
            "prompt_eval_count": made.n_tokens,
        })))
    };
    in_shape(answer.await)
}

async fn ollama_old(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let request = embeddings::parse_ollama(&body, true)?;
        let model = shared.models.lease(request.model.as_deref(), request.keep_alive).await?;
        let mut made = shared.embed(&model, request).await?;
        let vector = made.vectors.pop().unwrap_or_else(|| json!([]));
        Ok(with_json(&json!({"embedding": vector})))
    };
    in_shape(answer.await)
}
