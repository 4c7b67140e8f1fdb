//! Figures, and the table of them.

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: String,
    /// Share of the best that is possible here: of KVM's own speed, or of the transport's. 1 is as fast as that.
    pub floor_ratio: Option<f64>,
    /// The same beside another debugger server.
    pub peer_ratio: Option<f64>,
    /// Least and greatest of the ratios that `peer_ratio` is the median of, one for each round.
    pub peer_spread: Option<[f64; 2]>,
    /// The other server's own figure.
    pub peer_value: Option<f64>,
}

impl Figure {
    pub(super) fn new(name: &str, value: f64, unit: &str, floor_ratio: Option<f64>) -> Self {
        let (name, unit) = (name.to_owned(), unit.to_owned());
        Self { name, value, unit, floor_ratio, peer_ratio: None, peer_spread: None, peer_value: None }
    }

    /// Beside another server's figures: one of ours and one of its for each round. All of them are rates.
    pub(super) fn beside(mut self, rounds: &[(f64, f64)]) -> Self {
        if rounds.is_empty() {
            return self;
        }
        let ratios = sorted(rounds.iter().map(|(ours, peers)| ours / peers));
        self.peer_ratio = Some(median(&ratios));
        self.peer_spread = ratios.first().zip(ratios.last()).map(|(least, greatest)| [*least, *greatest]);
        self.peer_value = Some(median(&sorted(rounds.iter().map(|(_, peers)| *peers))));
        self
    }

    /// A line of a script or an example: name, value, unit and ratio or a dash, separated by tabs.
    pub(super) fn parse(line: &str) -> Result<Self> {
        let bad = || format!("{line:?} is no figure");
        let fields: Vec<_> = line.split('\t').collect();
        let [name, value, unit, ratio] = fields[..] else { bail!(bad()) };
        let ratio = if ratio == "-" { None } else { Some(ratio.parse().with_context(bad)?) };
        Ok(Self::new(name, value.parse().with_context(bad)?, unit, ratio))
    }
}

/// In ascending order.
pub(super) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of values that are in order; NaN if there is none.
pub(super) fn median(values: &[f64]) -> f64 {
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of several measurements of the same figures: each as in the one that has the median of its ratio to the floor, or of its value.
///
/// # Errors
/// If they are not the same figures.
pub(super) fn middle(measurements: Vec<Vec<Figure>>) -> Result<Vec<Figure>> {
    let mut others = measurements.into_iter();
    let mut columns: Vec<_> = others.next().unwrap_or_default().into_iter().map(|figure| vec![figure]).collect();
    for other in others {
        ensure!(other.len() == columns.len(), "{} figures, and {} the first time", other.len(), columns.len());
        for (column, figure) in columns.iter_mut().zip(other) {
            ensure!(column[0].name == figure.name, "{} came instead of {}", figure.name, column[0].name);
            column.push(figure);
        }
    }
    let rank = |figure: &Figure| figure.floor_ratio.unwrap_or(figure.value);
    let median = |mut column: Vec<Figure>| {
        column.sort_by(|one, other| rank(one).total_cmp(&rank(other)));
        column.swap_remove(column.len() / 2)
    };
    Ok(columns.into_iter().map(median).collect())
}

/// All figures, aligned.
pub(super) fn table(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
    let mut text = format!(
        "{:width$}  {:>10} {:7} {:>8} {:>10} {:>8} {:>17}\n",
        "", "value", "unit", "of floor", "peer", "of peer", "least to greatest"
    );
    for figure in figures {
        let Figure { name, value, unit, floor_ratio, peer_ratio, peer_spread, peer_value } = figure;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let ratio = |ratio: &Option<f64>| or_dash(ratio.map(|ratio| format!("{ratio:.2}")));
        let spread = or_dash(peer_spread.map(|[least, greatest]| format!("{least:.2} to {greatest:.2}")));
        let (value, peer) = (short(*value), or_dash(peer_value.map(short)));
        let (floor, ratio) = (ratio(floor_ratio), ratio(peer_ratio));
        text += &format!("{name:width$}  {value:>10} {unit:7} {floor:>8} {peer:>10} {ratio:>8} {spread:>17}\n");
    }
    text
}

fn short(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_stepbench_are_figures() {
        assert_eq!(Figure::parse("a b\t2.5\t1/s\t0.9").unwrap(), Figure::new("a b", 2.5, "1/s", Some(0.9)));
        assert_eq!(Figure::parse("a\t2\tioctls\t-").unwrap(), Figure::new("a", 2.0, "ioctls", None));
        for bad in ["", "a\t1\ts", "a\tx\ts\t-", "a\t1\ts\tx"] {
            assert!(Figure::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_json_has_null_for_what_there_is_not() {
        let text = serde_json::to_string(&[Figure::new("a", 1.0, "s", None)]).unwrap();
        let rest = r#""floor_ratio":null,"peer_ratio":null,"peer_spread":null,"peer_value":null"#;
        assert_eq!(text, format!(r#"[{{"name":"a","value":1.0,"unit":"s",{rest}}}]"#));
    }

    #[test]
    fn the_ratio_is_that_of_the_median_round() {
        let figure = Figure::new("a", 20.0, "1/s", None).beside(&[(20.0, 10.0), (30.0, 5.0), (9.0, 9.0)]);
        assert_eq!(figure.peer_ratio, Some(2.0));
        assert_eq!(figure.peer_spread, Some([1.0, 6.0]));
        assert_eq!(figure.peer_value, Some(9.0));
        assert_eq!(Figure::new("a", 1.0, "s", None).beside(&[]), Figure::new("a", 1.0, "s", None));
    }

    #[test]
    fn each_figure_is_that_of_its_own_median_measurement() {
        let measured =
            |value, ratio| vec![Figure::new("a", value, "1/s", Some(ratio)), Figure::new("b", value, "s", None)];
        let figures = middle(vec![measured(1.0, 9.0), measured(2.0, 7.0), measured(3.0, 8.0)]).unwrap();
        assert_eq!(figures, [Figure::new("a", 3.0, "1/s", Some(8.0)), Figure::new("b", 2.0, "s", None)]);
        assert_eq!(middle(Vec::new()).unwrap(), []);
        let other = vec![Figure::new("b", 1.0, "s", None)];
        assert!(middle(vec![measured(1.0, 1.0), other.clone()]).is_err());
        assert!(middle(vec![other, vec![Figure::new("c", 1.0, "s", None)]]).is_err());
    }

    #[test]
    fn the_table_is_aligned() {
        let beside = Figure::new("short", 1.0, "s", None).beside(&[(1.0, 1.0)]);
        let text = table(&[beside, Figure::new("a longer one", 12345.6, "1/s", Some(0.5))]);
        let lengths: Vec<_> = text.lines().map(str::len).collect();
        assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert!(text.contains("12346") && text.contains("0.50") && text.contains("1.00 to 1.00"));
    }
}
