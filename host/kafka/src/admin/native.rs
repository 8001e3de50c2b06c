//! The two calls of librdkafka that rdkafka has no safe form of.
#![allow(
    unsafe_code,
    reason = "each call is one function of C on a live client, with nothing kept behind it"
)]

use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::AdminClient;
use rdkafka::bindings as c;
use rdkafka::client::{Client, OAuthToken};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};

use crate::context::Context;
use crate::settings::{Sasl, Settings, without_statistics};
use crate::{limits, oauth};

/// Room for librdkafka's reason.
const REASON_BYTES: usize = 512;

/// The broker that the cluster names as its controller; `None`: not said in time.
pub fn controller(client: &Client<Context>, limit: Duration) -> Option<i32> {
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the pointer is that of a client that is borrowed, so it lives through the call; librdkafka's
    // functions may be called from any thread.
    let id = unsafe { c::rd_kafka_controllerid(client.native_ptr(), limit_ms) };
    (id >= 0).then_some(id)
}

/// An admin client. One of rdkafka serves no events, so it would wait for a token for ever: it gets one at once.
pub fn admin_client(who: &str, settings: &Arc<Settings>) -> KafkaResult<AdminClient<Context>> {
    let context = Context::new(who, settings.clone(), None);
    let config = without_statistics(settings.config(who));
    let admin = AdminClient::from_config_and_context(&config, context)?;
    give_token(admin.inner(), settings)?;
    Ok(admin)
}

/// A consumer for questions, which asks before it polls: nothing connects before there is a token, and librdkafka's own
/// question for one is only heard in a poll.
pub fn questioner(
    who: &str,
    settings: &Arc<Settings>,
    config: &ClientConfig,
) -> KafkaResult<BaseConsumer<Context>> {
    let context = Context::new(who, settings.clone(), None);
    let consumer = BaseConsumer::from_config_and_context(&without_statistics(config.clone()), context)?;
    give_token(consumer.client(), settings)?;
    Ok(consumer)
}

/// Serves what waits at a [`questioner`] that reads nothing: lines of the log, errors, the question for a token.
pub fn serve(questioner: &BaseConsumer<Context>) {
    // Without a wait rdkafka takes one event, and does not say whether there was one.
    for _ in 0..limits::EVENTS_AT_ONCE {
        drop(questioner.poll(Duration::ZERO));
    }
}

/// A [`questioner`] that reads partitions: it joins no group and commits nothing; `group` is whose offsets it can ask for.
pub fn partition_reader(
    who: &str,
    settings: &Arc<Settings>,
    group: &str,
    isolation: &str,
) -> KafkaResult<BaseConsumer<Context>> {
    let mut config = settings.config(who);
    config.set("group.id", group).set("enable.auto.commit", "false");
    config.set("allow.auto.create.topics", "false").set("auto.offset.reset", "error");
    config.set("isolation.level", isolation).set("enable.partition.eof", "true");
    config.set("fetch.wait.max.ms", limits::END_WAIT_MS);
    questioner(who, settings, &config)
}

/// Gives a client its first token, if it logs in with one.
pub fn give_token(client: &Client<Context>, settings: &Settings) -> KafkaResult<()> {
    if settings.sasl != Some(Sasl::OauthBearer) {
        return Ok(());
    }
    let token = oauth::token(settings).map_err(|error| error.to_string());
    token.and_then(|token| set_token(client, token)).map_err(KafkaError::ClientCreation)
}

/// Gives a client a token; an error is why it takes none.
pub fn set_token(client: &Client<Context>, token: OAuthToken) -> Result<(), String> {
    let no_nul = |_| "the token holds a zero byte".to_string();
    let text = CString::new(token.token).map_err(no_nul)?;
    let principal = CString::new(token.principal_name).map_err(no_nul)?;
    let mut reason = [0_u8; REASON_BYTES];
    // SAFETY: as above; both texts end in a zero and are copied by the callee; there are no extensions (a null
    // pointer with the length zero); the reason is written within the length that is given, with a zero at its end.
    let code = unsafe {
        c::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            text.as_ptr(),
            token.lifetime_ms,
            principal.as_ptr(),
            std::ptr::null_mut(),
            0,
            reason.as_mut_ptr().cast(),
            reason.len(),
        )
    };
    if code == c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(());
    }
    let end = reason.iter().position(|byte| *byte == 0).unwrap_or(reason.len());
    Err(String::from_utf8_lossy(reason.get(..end).unwrap_or_default()).into_owned())
}
