//! Time: `CLOCK_BOOTTIME` for everything that is decided, the time of day for file times.

use std::time::Duration;

use lunfs_core::env::{Answer, Clock, Instant};
use lunfs_format::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Longest single sleep. Timers stand still while the machine is suspended and `CLOCK_BOOTTIME`
/// does not, so a sleeper looks again at least this often.
const NAP_MAX: Duration = Duration::from_secs(1);

/// Now, in nanoseconds of `CLOCK_BOOTTIME`. Any thread may ask.
pub fn boottime() -> Instant {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("no boot was before itself");
    let nanos = u64::try_from(now.tv_nsec).expect("nanoseconds are positive");
    Instant(seconds * 1_000_000_000 + nanos)
}

/// This machine's clocks; sleeping needs a tokio runtime with timers.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn now(&self) -> Instant {
        boottime()
    }

    fn sleep_until(&self, at: Instant) -> Answer<()> {
        Box::pin(async move {
            loop {
                let now = boottime();
                if now >= at {
                    return;
                }
                tokio::time::sleep(at.since(now).min(NAP_MAX)).await;
            }
        })
    }

    fn wall(&self) -> Timestamp {
        let now = clock_gettime(ClockId::Realtime);
        let nanos = u32::try_from(now.tv_nsec).expect("nanoseconds are below 10^9");
        Timestamp { seconds: now.tv_sec, nanos }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_sleeper_never_wakes_early() {
        let clock = HostClock;
        let at = clock.now() + Duration::from_millis(30);
        clock.sleep_until(at).await;
        assert!(clock.now() >= at);
        clock.sleep_until(Instant(0)).await;
    }
}
