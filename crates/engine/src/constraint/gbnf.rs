use super::ConstraintError;
pub(super) fn to_lark(_: &str) -> Result<String, ConstraintError> {
    Err(ConstraintError("TODO".into()))
}
