//! What the debugger costs inside the VMM, beside KVM alone: `cargo xtask bench` runs this on an arm64 KVM host.
//!
//! Prints a line for each figure: name, value, unit and, where KVM alone can do the same, the share of KVM's own speed,
//! separated by tabs.

#[cfg(target_arch = "aarch64")]
mod condition;
#[cfg(target_arch = "aarch64")]
mod floor;
#[cfg(target_arch = "aarch64")]
mod payload;
#[cfg(target_arch = "aarch64")]
mod reply;
#[cfg(target_arch = "aarch64")]
mod session;

/// Whatever went wrong, for a message.
#[cfg(target_arch = "aarch64")]
type Error = Box<dyn std::error::Error + Send + Sync>;

#[cfg(not(target_arch = "aarch64"))]
fn main() {
    eprintln!("stepbench needs an arm64 host with KVM; cargo xtask bench has one");
    std::process::exit(1);
}

#[cfg(target_arch = "aarch64")]
fn main() -> Result<(), Error> {
    for payload in payload::all() {
        steps(&payload)?;
    }
    for (name, rate, ratio) in condition::measure()? {
        figure(name, rate, "1/s", Some(ratio));
    }
    let (ours, floor) = reply::measure()?;
    figure("hit to stop reply", ours * 1e6, "us", Some(floor / ours));
    Ok(())
}

/// Steps through a payload with the session and without, in turns, so that both see the same machine.
#[cfg(target_arch = "aarch64")]
fn steps(payload: &payload::Payload) -> Result<(), Error> {
    const ROUNDS: usize = 7;
    let bare = floor::Bare::new(payload)?;
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    session::with_stepper(payload, |stepper| {
        // The first round maps memory and fills caches.
        for round in 0..=ROUNDS {
            let (floor, ours) = (bare.round()?, stepper.round()?);
            if round > 0 {
                ratios.push(floor.as_secs_f64() / ours.as_secs_f64());
                rates.push(payload::STEPS as f64 / ours.as_secs_f64());
            }
        }
        Ok(())
    })?;
    let name = payload.name;
    figure(&format!("steps in a range, {name}"), median(rates), "1/s", Some(median(ratios)));
    let calls = session::calls_per_step(payload)?;
    figure(&format!("register reads per step, {name}"), calls.gets, "ioctls", None);
    figure(&format!("register writes per step, {name}"), calls.sets, "ioctls", None);
    figure(&format!("KVM_SET_GUEST_DEBUG per step, {name}"), calls.configs, "ioctls", None);
    Ok(())
}

#[cfg(target_arch = "aarch64")]
fn figure(name: &str, value: f64, unit: &str, floor_ratio: Option<f64>) {
    let ratio = floor_ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.4}"));
    println!("{name}\t{value:.4}\t{unit}\t{ratio}");
}

#[cfg(target_arch = "aarch64")]
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
