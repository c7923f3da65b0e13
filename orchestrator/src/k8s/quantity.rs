//! Kubernetes' quantities ("100m", "1.5Gi", "2e3") as whole thousandths: exact for cpu, enough for everything else.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name, in thousandths.
pub type Amounts = BTreeMap<String, u64>;

/// The quantity in thousandths, rounded up as Kubernetes rounds; `None` when it isn't one.
#[must_use]
pub fn milli(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (up, down) = factor(suffix)?;
    let divisor = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let milli = digits
        .checked_mul(up)?
        .checked_mul(1000)?
        .div_ceil(divisor.checked_mul(down)?);
    u64::try_from(milli).ok()
}

/// The suffix as a fraction.
fn factor(suffix: &str) -> Option<(u128, u128)> {
    let exponent = suffix.strip_prefix(['e', 'E']).filter(|e| !e.is_empty());
    if let Some(exponent) = exponent {
        let exponent: i32 = exponent.parse().ok()?;
        let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
        return Some(if exponent < 0 { (1, power) } else { (power, 1) });
    }
    Some(match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _unknown => return None,
    })
}

/// A map of quantities. One that can't be read or is beyond 2^64 counts as the most there is.
#[must_use]
pub fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    quantities
        .into_iter()
        .flatten()
        .map(|(name, quantity)| (name.clone(), milli(&quantity.0).unwrap_or(u64::MAX)))
        .collect()
}

/// Adds up, by name.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let entry = sum.entry(name.clone()).or_default();
        *entry = entry.saturating_add(*amount);
    }
}

/// Raises each to at least the other's.
pub fn raise(to: &mut Amounts, at_least: &Amounts) {
    for (name, amount) in at_least {
        let entry = to.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", 0),
            ("100m", 100),
            ("1", 1000),
            ("0.5", 500),
            (".5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("128Mi", 134_217_728_000),
            ("2k", 2_000_000),
            ("2e3", 2_000_000),
            ("1E-3", 1),
            ("100n", 1),
        ] {
            assert_eq!(milli(text), Some(expected), "{text}");
        }
        for text in ["", ".", "Mi", "1Xi", "-1", "1e", "1E"] {
            assert_eq!(milli(text), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_counts_as_the_most_there_is() {
        let map = BTreeMap::from([("cpu".to_owned(), Quantity("many".to_owned()))]);
        assert_eq!(amounts(Some(&map))["cpu"], u64::MAX);
        assert!(amounts(None).is_empty());
    }
}
