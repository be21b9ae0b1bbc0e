//! Stop signals between CRI's alphabetical index and the kernel's numbers. The table itself is
//! [`StopSignal`]'s.

use coracle_domain::{ContainerView, Refusal, StopSignal};

use crate::v1;

/// The signal a caller asked for; `None` leaves the choice to image and runtime.
pub(crate) fn parse(index: i32) -> Result<Option<StopSignal>, Refusal> {
    if index == v1::Signal::RuntimeDefault as i32 {
        return Ok(None);
    }
    let signal = StopSignal(index);
    match signal.number() {
        Some(_) => Ok(Some(signal)),
        None => Err(Refusal::invalid("config.stop_signal", format!("there is no signal {index}"))),
    }
}

/// CRI's index of the signal in effect: under the name that was asked for, where it has two.
pub(crate) fn effective(container: &ContainerView) -> i32 {
    let asked = container.request.stop_signal.filter(|signal| signal.number() == Some(container.stop_signal));
    asked.or_else(|| StopSignal::from_number(container.stop_signal)).map_or(v1::Signal::RuntimeDefault as i32, |signal| signal.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_contract_means_what_its_name_says() {
        for index in 1..=65 {
            let name = v1::Signal::try_from(index).unwrap().as_str_name().replace("PLUS", "+").replace("MINUS", "-");
            let named = coracle_spec::signal_number(name.strip_prefix("SIGNAL_").unwrap());
            assert!(named.is_some(), "{name}");
            assert_eq!(parse(index).unwrap().and_then(StopSignal::number), named, "{name}");
        }
        assert!(v1::Signal::try_from(66).is_err());
    }

    #[test]
    fn zero_is_no_choice_and_an_unknown_index_is_refused() {
        assert_eq!(parse(0), Ok(None));
        for index in [-1, 66, i32::MIN, i32::MAX] {
            assert!(matches!(parse(index), Err(Refusal::Invalid { .. })), "{index}");
        }
    }
}
