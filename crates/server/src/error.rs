//! What a client is told when its request fails, in the shape of the API that it speaks.
use serde_json::{Value, json};

/// What kind of failure this is; the HTTP status and the names in each API follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request makes no sense or cannot be honoured.
    Invalid,
    /// The API key is missing or wrong.
    Unauthorized,
    /// The server is not to do this for anybody.
    Forbidden,
    /// There is no such model or resource.
    NotFound,
    /// There is something at this path, but not for this method.
    WrongMethod,
    /// The request did not come in time.
    TooSlow,
    /// The body is larger than allowed.
    TooLarge,
    /// Too many requests wait already.
    QueueFull,
    /// The server is loading or shutting down.
    Unavailable,
    /// Other servers of this API do that, this one does not.
    NotSupported,
    /// The request took longer than allowed.
    TimedOut,
    /// A failure that is not the client's.
    Internal,
}

impl ErrorKind {
    /// Kind, HTTP status, OpenAI's type, Anthropic's type.
    const TABLE: [(Self, u16, &'static str, &'static str); 12] = [
        (Self::Invalid, 400, "invalid_request_error", "invalid_request_error"),
        (Self::Unauthorized, 401, "authentication_error", "authentication_error"),
        (Self::Forbidden, 403, "permission_error", "permission_error"),
        (Self::NotFound, 404, "not_found_error", "not_found_error"),
        (Self::WrongMethod, 405, "invalid_request_error", "invalid_request_error"),
        (Self::TooSlow, 408, "timeout_error", "timeout_error"),
        (Self::TooLarge, 413, "invalid_request_error", "request_too_large"),
        (Self::QueueFull, 429, "rate_limit_error", "rate_limit_error"),
        (Self::NotSupported, 501, "not_supported_error", "invalid_request_error"),
        (Self::Unavailable, 503, "unavailable_error", "overloaded_error"),
        (Self::TimedOut, 504, "timeout_error", "timeout_error"),
        (Self::Internal, 500, "server_error", "api_error"),
    ];

    fn row(self) -> (u16, &'static str, &'static str) {
        let row = Self::TABLE.iter().find(|row| row.0 == self);
        row.map_or((500, "server_error", "api_error"), |row| (row.1, row.2, row.3))
    }
}

/// A refusal or failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind.
    pub kind: ErrorKind,
    /// For the person who reads it.
    pub message: String,
    /// The parameter at fault, as the client wrote it.
    pub param: Option<String>,
    /// OpenAI's code, for programs: `model_not_found`, `context_length_exceeded` ...
    pub code: Option<&'static str>,
    /// By how much a prompt is too long.
    pub overflow: Option<Overflow>,
}

/// A prompt and what there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens that the context holds.
    pub n_ctx: usize,
}

impl ApiError {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, code: None, overflow: None }
    }

    /// A parameter that makes no sense or cannot be honoured.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(ErrorKind::Invalid, message) }
    }

    /// The model is not on this machine.
    pub fn no_model(name: &str) -> Self {
        Self {
            code: Some("model_not_found"),
            param: Some("model".into()),
            ..Self::new(
                ErrorKind::NotFound,
                format!(
                    "model '{name}' not found on this machine\nhint: 'hurtle list' shows what is there, 'hurtle pull' fetches"
                ),
            )
        }
    }

    /// Whether it is of [`ApiError::no_model`].
    pub(crate) fn is_no_model(&self) -> bool {
        self.code == Some("model_not_found")
    }

    /// The prompt does not fit; both numbers are told, nothing is ever cut off.
    pub fn prompt_too_long(n_prompt: usize, n_ctx: usize) -> Self {
        Self {
            code: Some("context_length_exceeded"),
            overflow: Some(Overflow { n_prompt, n_ctx }),
            ..Self::new(
                ErrorKind::Invalid,
                format!(
                    "the prompt has {n_prompt} tokens, which exceeds the available context size of {n_ctx}\n\
                     hint: shorten the prompt, or start the server with a larger --ctx-size"
                ),
            )
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.kind.row().0
    }

    /// The body that OpenAI's clients expect; llama.cpp's have the same shape, and count the tokens of a prompt
    /// that is too long.
    pub fn openai(&self) -> Value {
        let mut error = json!({
            "message": self.message,
            "type": self.kind.row().1,
            "param": self.param,
            "code": self.code,
        });
        if let Some(Overflow { n_prompt, n_ctx }) = self.overflow {
            error["type"] = "exceed_context_size_error".into();
            error["n_prompt_tokens"] = n_prompt.into();
            error["n_ctx"] = n_ctx.into();
        }
        json!({"error": error})
    }

    /// The body that Anthropic's clients expect.
    pub fn anthropic(&self) -> Value {
        json!({"type": "error", "error": {"type": self.kind.row().2, "message": self.message}})
    }

    /// The body that Ollama's clients expect.
    pub fn ollama(&self) -> Value {
        json!({"error": self.message})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_api_has_its_shape() {
        let error = ApiError::invalid("n", "n: expected at least 1, found 0");
        assert_eq!(error.status(), 400);
        assert_eq!(
            error.openai(),
            json!({"error": {"message": "n: expected at least 1, found 0",
                "type": "invalid_request_error", "param": "n", "code": null}})
        );
        assert_eq!(error.anthropic()["error"]["type"], "invalid_request_error");
        assert_eq!(error.ollama(), json!({"error": "n: expected at least 1, found 0"}));
    }

    #[test]
    fn a_long_prompt_is_told_with_both_numbers() {
        let error = ApiError::prompt_too_long(5000, 4096);
        assert_eq!((error.status(), error.code), (400, Some("context_length_exceeded")));
        assert!(error.message.contains("5000") && error.message.contains("4096"), "{error}");
        let told = &error.openai()["error"];
        assert_eq!(told["type"], "exceed_context_size_error");
        assert_eq!((&told["n_prompt_tokens"], &told["n_ctx"]), (&json!(5000), &json!(4096)));
        assert_eq!(error.anthropic()["error"]["type"], "invalid_request_error");
    }

    #[test]
    fn every_kind_has_a_row() {
        use ErrorKind::*;
        let kinds = [
            (Invalid, 400),
            (Unauthorized, 401),
            (Forbidden, 403),
            (NotFound, 404),
            (WrongMethod, 405),
            (TooSlow, 408),
            (TooLarge, 413),
            (QueueFull, 429),
            (NotSupported, 501),
            (Unavailable, 503),
            (TimedOut, 504),
            (Internal, 500),
        ];
        for (kind, status) in kinds {
            assert_eq!(ApiError::new(kind, "").status(), status, "{kind:?}");
        }
    }
}
