//! A picture that is drawn anew until Ctrl-C.

use std::fmt::Write as _;
use std::time::Duration;

use atelier_core::time::Timestamp;
use clap::Args;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::{Context, Error};

/// How often it is drawn.
#[derive(Args)]
pub(in crate::cli) struct Pace {
    /// Seconds between two pictures
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    interval: Duration,
    /// Print it once
    #[arg(long)]
    once: bool,
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a number of seconds: write for example 2 or 0.5");
    let number: f64 = text.parse().map_err(|_| wrong())?;
    match (0.1..=3600.0).contains(&number) {
        true => Ok(Duration::from_secs_f64(number)),
        false => Err(wrong()),
    }
}

/// Looks again and again and draws what is seen; prints it once where it cannot be drawn.
pub(super) async fn watch(
    pace: &Pace,
    context: &Context,
    look: impl AsyncFn() -> Result<Value, Error>,
    picture: fn(&Value, Timestamp) -> String,
) -> Result<(), Error> {
    if pace.once || !context.output.is_drawn() {
        let seen = look().await?;
        return match context.output.is_plain() {
            true => context.output.print(&picture(&seen, now())),
            false => context.output.show(&seen),
        };
    }
    let screen = Screen::open(context);
    let mut tick = interval(pace.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            _ = &mut stop => return Ok(()),
            _ = tick.tick() => {}
        }
        let seen = tokio::select! {
            _ = &mut stop => return Ok(()),
            seen = look() => seen?,
        };
        screen.draw(&picture(&seen, now()))?;
    }
}

fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

/// The terminal's other screen; left when dropped, so that what was there is there again.
struct Screen<'a> {
    context: &'a Context,
}

impl<'a> Screen<'a> {
    fn open(context: &'a Context) -> Self {
        // A terminal that cannot is none of this program's business.
        let _ = context.output.print("\x1b[?1049h\x1b[?25l");
        Self { context }
    }

    /// Draws over what is there, so that it does not flicker; lines that do not fit are left out.
    fn draw(&self, picture: &str) -> Result<(), Error> {
        let rows = rows();
        let mut drawn = String::from("\x1b[H");
        for line in picture.lines().take(rows.saturating_sub(1)) {
            let _ = write!(drawn, "{line}\x1b[K\r\n");
        }
        drawn.push_str("\x1b[J");
        self.context.output.print(&drawn)
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        let _ = self.context.output.print("\x1b[?25h\x1b[?1049l");
    }
}

/// Lines of the terminal.
fn rows() -> usize {
    rustix::termios::tcgetwinsize(rustix::stdio::stdout())
        .ok()
        .map(|size| usize::from(size.ws_row))
        .filter(|&rows| rows > 0)
        .unwrap_or(24)
}
