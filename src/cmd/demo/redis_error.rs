//! Errors of the demo's own connections to Redis.

use crate::cmd::failure::Failure;

pub(super) fn redis_failure(error: redis::RedisError) -> Failure {
    Failure::unavailable(format!("Redis: {}", crate::redis::describe(&error)))
}
