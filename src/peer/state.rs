//! What is known of a peer: its breaker, its concurrency, and its identity. Plain data with plain decisions.

use crate::breaker::{Breaker, FailureWeight, Pass, Reason, Transition};
use crate::clock::Monotonic;
use crate::concurrency::Concurrency;
use crate::store::StoreInfo;
use std::time::Duration;

/// A peer that was silent for longer is asked what it is before it is used: it may have been replaced meanwhile.
const SILENCE: Duration = Duration::from_secs(2);

/// A peer that failed is asked again what it is, unless it was asked within this time.
const DOUBT: Duration = Duration::from_millis(500);

/// It is used on while it is asked, unless it has not said so for this time.
const LONG_DOUBT: Duration = Duration::from_secs(1);

/// A peer is asked what it is at least so often.
const INFO_MAX_AGE: Duration = Duration::from_mins(1);

/// So long a peer counts as one that answers.
const ANSWERS: Duration = Duration::from_secs(30);

/// The pause after an identification that failed. Short, since nothing is started meanwhile; the breaker ends it soon.
const PAUSE: Duration = Duration::from_millis(25);

/// What is known of a peer, and what follows from it.
#[derive(Debug)]
pub(crate) struct PeerState {
    /// Whether the peer is tried at all.
    breaker: Breaker,
    /// How many copies at a time may use it.
    pub concurrency: Concurrency,
    /// What the store last said of itself, and when.
    info: Option<(StoreInfo, Monotonic)>,
    last_contact: Option<Monotonic>,
    last_error: Option<(Reason, Monotonic)>,
    /// When it last did not say what it is.
    silent: Option<Monotonic>,
    /// It failed since it last said what it is.
    doubted: bool,
    /// Another store was adopted since it last said what it is.
    adopted: bool,
    /// Since when it is being asked what it is.
    identifying: Option<Monotonic>,
    /// When the next identification may begin.
    next_identification: Monotonic,
    /// Changes that were not logged yet.
    transitions: Vec<Transition>,
    /// Whether other routes are to look again.
    is_news: bool,
    /// A route wanted to begin more than there is room for.
    pub denied: bool,
}

impl PeerState {
    /// A peer that was not asked yet.
    pub(crate) fn new(now: Monotonic) -> Self {
        Self {
            breaker: Breaker::new(now),
            concurrency: Concurrency::default(),
            info: None,
            last_contact: None,
            last_error: None,
            silent: None,
            doubted: false,
            adopted: false,
            identifying: None,
            next_identification: Monotonic::ZERO,
            transitions: Vec::new(),
            is_news: false,
            denied: false,
        }
    }

    /// The breaker.
    pub(crate) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// What may be done with the peer now, as far as its breaker goes.
    pub(crate) fn pass(&self, now: Monotonic) -> Pass {
        self.breaker.pass(now)
    }

    /// What the store last said of itself.
    pub(crate) fn info(&self) -> Option<&StoreInfo> {
        self.info.as_ref().map(|(info, _)| info)
    }

    /// When it said that.
    pub(crate) fn info_time(&self) -> Option<Monotonic> {
        self.info.as_ref().map(|(_, told)| *told)
    }

    /// When it last answered.
    pub(crate) fn last_contact(&self) -> Option<Monotonic> {
        self.last_contact
    }

    /// The last fault of its own, and when it happened.
    pub(crate) fn last_error(&self) -> Option<&(Reason, Monotonic)> {
        self.last_error.as_ref()
    }

    /// Whether it answers small questions, or did half a minute ago and was not asked in vain since, though its breaker may be
    /// open.
    pub(crate) fn answers(&self, now: Monotonic) -> bool {
        let told = self.info_time().max(self.breaker.last_canary());
        let is_true = |told: Monotonic| now.since(told) <= ANSWERS && self.silent.is_none_or(|silent| silent < told);
        told.is_some_and(is_true) && !self.breaker.snapshot().latched
    }

    /// What is expected of the peer has changed: it is asked what it is at once, whatever is known.
    pub(crate) fn expect_another(&mut self, now: Monotonic) {
        self.doubted = true;
        self.adopted = true;
        self.next_identification = now;
        self.breaker.try_now(now);
        self.is_news = true;
    }

    /// Whether the peer is to be asked what it is.
    pub(crate) fn wants_identification(&self, now: Monotonic) -> bool {
        self.needs_identification_after(now, DOUBT)
    }

    /// Whether the peer has to say what it is before it is used.
    pub(crate) fn needs_identification(&self, now: Monotonic) -> bool {
        self.needs_identification_after(now, LONG_DOUBT)
    }

    fn needs_identification_after(&self, now: Monotonic, doubt: Duration) -> bool {
        let is_older = |since: Monotonic, limit| now.since(since) > limit;
        let Some((_, asked)) = self.info else { return true };
        self.breaker.snapshot().latched
            || self.adopted
            || is_older(asked, INFO_MAX_AGE)
            || self.last_contact.is_none_or(|contact| is_older(contact, SILENCE))
            || (self.doubted && is_older(asked, doubt))
    }

    /// Whether an identification may begin now; if not, it is under way, or when to look again.
    ///
    /// # Errors
    /// When to look again; `None` while one is under way.
    pub(crate) fn may_identify(&self, now: Monotonic) -> Result<(), Option<Monotonic>> {
        if self.identifying.is_some() {
            return Err(None);
        }
        if now < self.next_identification { Err(Some(self.next_identification)) } else { Ok(()) }
    }

    /// An identification begins; one that is a try of the open breaker, too. `jitter` is in `[0, 1)`.
    pub(crate) fn begin_identification(&mut self, now: Monotonic, jitter: f64) {
        self.identifying = Some(now);
        self.breaker.begin(now, jitter);
    }

    /// When the store last said what it is, or failed to.
    pub(crate) fn asked(&self) -> Option<Monotonic> {
        self.info.as_ref().map(|(_, asked)| *asked).max(self.last_error.as_ref().map(|(_, at)| *at))
    }

    /// The store said what it is, and that is what it should be.
    pub(crate) fn identified(&mut self, info: StoreInfo, now: Monotonic) {
        self.end_identification();
        (self.doubted, self.adopted) = (false, false);
        self.info = Some((info, now));
        self.last_contact = Some(now);
        let transition = self.breaker.identified(now);
        self.note(transition);
    }

    /// The store did not say what it is. `jitter` is in `[0, 1)`.
    pub(crate) fn not_identified(&mut self, reason: Reason, now: Monotonic, jitter: f64) {
        self.end_identification();
        self.next_identification = now.saturating_add(PAUSE);
        self.silent = Some(now);
        let is_try = self.breaker.is_open();
        self.fail(FailureWeight::Identification, is_try, reason, now, jitter);
    }

    /// The store says that it is another one, or of the wrong kind. `jitter` is in `[0, 1)`.
    pub(crate) fn is_another(&mut self, info: StoreInfo, reason: Reason, now: Monotonic, jitter: f64) {
        self.end_identification();
        self.adopted = false;
        self.info = Some((info, now));
        self.last_error = Some((reason.clone(), now));
        let transition = self.breaker.latch(reason, now, jitter);
        self.note(transition);
    }

    /// A copy begins; gives how wide it is. `jitter` is in `[0, 1)`.
    pub(crate) fn begin(&mut self, now: Monotonic, jitter: f64) -> usize {
        self.breaker.begin(now, jitter);
        self.concurrency.begin()
    }

    /// A copy that began then uses the peer no more. What came of it is told apart.
    pub(crate) fn end(&mut self) {
        self.concurrency.end();
        self.is_news |= std::mem::take(&mut self.denied);
    }

    /// A try of the open breaker, which began then, has ended.
    pub(crate) fn end_try(&mut self, began: Monotonic) {
        self.breaker.end(began);
    }

    /// The peer did what it was asked to.
    pub(crate) fn succeeded(&mut self, now: Monotonic) {
        self.last_contact = Some(now);
        let transition = self.breaker.succeeded(now);
        if transition.is_some() {
            self.concurrency.reopened();
        }
        self.note(transition);
    }

    /// The peer failed, or seems to have; see [`Breaker::failed`].
    pub(crate) fn fail(&mut self, how: FailureWeight, is_try: bool, reason: Reason, now: Monotonic, jitter: f64) {
        self.doubted = true;
        self.last_error = Some((reason.clone(), now));
        let in_flight = self.concurrency.in_flight();
        let transition = self.breaker.failed(how, in_flight, is_try, reason, now, jitter);
        self.note(transition);
    }

    /// The peer refused for want of capacity.
    pub(crate) fn refused(&mut self, width: usize, wait: Duration, reason: Reason, now: Monotonic) {
        self.last_error = Some((reason, now));
        self.last_contact = Some(now);
        self.concurrency.refused(width, wait, now);
    }

    /// What it says of blobs is odd, as if it were another: it is asked what it is before its next use, unless it has just been.
    pub(crate) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// The peer was asked a small question; the answer was well, or it was not.
    pub(crate) fn canary(&mut self, well: bool, now: Monotonic) {
        self.breaker.canary(well, now);
        self.is_news = true;
    }

    /// An identification was given up before it came to anything.
    pub(crate) fn abandon_identification(&mut self) {
        if self.identifying.is_some() {
            self.end_identification();
        }
    }

    /// Changes of the breaker that were not logged yet, and whether those who use the peer are to look again.
    pub(crate) fn take_news(&mut self) -> (Vec<Transition>, bool) {
        (std::mem::take(&mut self.transitions), std::mem::take(&mut self.is_news))
    }

    fn end_identification(&mut self) {
        if let Some(began) = self.identifying.take() {
            self.breaker.end(began);
        }
        self.is_news = true;
    }

    fn note(&mut self, transition: Option<Transition>) {
        self.is_news |= transition.is_some();
        self.transitions.extend(transition);
    }
}
