//! Charts, drawn as SVG.

use std::error::Error;
use std::fs;
use std::path::Path;

use plotters::coord::combinators::BindKeyPoints;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

const FONT: &str = "sans-serif";
const TEXT: i32 = 13;
const WIDTH: u32 = 900;
/// How high a bar is, and how much lies between two groups.
const BAR: i32 = 15;
/// How high a line of the legend is.
const LEGEND: i32 = 20;
/// Room above the bars and below, for the title and the axis.
const AROUND: u32 = 80;
/// Room for the names of groups.
const NAMES: u32 = 250;

/// Groups of bars, one bar a series: a chart that says how much.
pub struct Bars {
    /// What the file is called, without its ending.
    pub file: String,
    /// What the chart says, with the unit.
    pub title: String,
    /// Whether the axis is logarithmic.
    pub logarithmic: bool,
    /// What each bar of a group stands for.
    pub series: Vec<String>,
    /// What the groups are called, and their values; a series may have none.
    pub groups: Vec<(String, Vec<Option<f64>>)>,
}

/// A value over time.
pub struct Line {
    /// What the file is called, without its ending.
    pub file: &'static str,
    /// What the chart says, with the unit.
    pub title: String,
    /// Seconds, and the value.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
pub enum Chart {
    /// Groups of bars.
    Bars(Bars),
    /// A line.
    Line(Line),
}

impl Chart {
    /// What the file is called, without its ending.
    pub fn file(&self) -> &str {
        match self {
            Self::Bars(bars) => &bars.file,
            Self::Line(line) => line.file,
        }
    }

    /// What it says.
    pub fn title(&self) -> &str {
        match self {
            Self::Bars(bars) => &bars.title,
            Self::Line(line) => &line.title,
        }
    }

    /// Writes the chart into `folder`, and makes sure that it is SVG.
    ///
    /// # Panics
    /// When it cannot be drawn, or is no SVG with all that it should say.
    pub fn write(&self, folder: &Path) {
        let path = folder.join(format!("{}.svg", self.file()));
        match self {
            Self::Bars(bars) => bars.draw(&path),
            Self::Line(line) => line.draw(&path),
        }
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let text = fs::read_to_string(&path).expect("the chart");
        let document = roxmltree::Document::parse(&text).expect("XML");
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let says = |wanted: &str| {
            document.descendants().any(|node| node.text().is_some_and(|text| text.trim() == wanted))
        };
        assert!(says(self.title()), "{} has no title", path.display());
        if let Self::Bars(bars) = self {
            let names = bars.groups.iter().map(|(name, _)| name);
            // There is no legend for one.
            let series = bars.series.iter().filter(|_| bars.series.len() > 1);
            for name in names.chain(series) {
                assert!(says(name), "{} does not say {name:?}", path.display());
            }
        }
    }
}

impl Bars {
    fn draw(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let values = || self.groups.iter().flat_map(|(_, values)| values.iter().flatten().copied());
        let most = values().fold(f64::MIN_POSITIVE, f64::max);
        if self.logarithmic {
            let least = values().filter(|value| *value > 0.0).fold(most, f64::min);
            let decade = |value: f64| 10_f64.powf(value);
            // Room for the numbers beside the bars.
            let range = decade(least.log10().floor())..decade(most.log10() + 0.6);
            self.draw_along(path, range.start, range.log_scale())
        } else {
            self.draw_along(path, 0.0, 0.0..most * 1.12)
        }
    }

    fn draw_along<X>(&self, path: &Path, from: f64, axis: X) -> Result<(), Box<dyn Error>>
    where
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
    {
        let series = i32::try_from(self.series.len())?;
        let groups = i32::try_from(self.groups.len())?;
        let step = (series + 1) * BAR;
        // Below the bars, so that it hides none.
        let legend = if series > 1 { series * LEGEND + BAR } else { 0 };
        let length = groups * step + legend;
        let height = u32::try_from(length)? + AROUND;
        let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let middles = (0..groups).map(|group| group * step + step / 2).collect();
        let name = |middle: &i32| {
            let group = usize::try_from(middle / step).unwrap_or_default();
            self.groups.get(group).map_or_else(String::new, |(name, _)| name.clone())
        };
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, (FONT, TEXT + 4))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(NAMES)
            // From top to bottom.
            .build_cartesian_2d(axis, (length..0).with_key_points(middles))?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .x_max_light_lines(1)
            .x_label_formatter(&|value| number(*value))
            .y_label_formatter(&name)
            .label_style((FONT, TEXT))
            .draw()?;
        for (place, (number_of_series, name)) in (0..).zip(self.series.iter().enumerate()) {
            let colour = Palette99::pick(number_of_series).to_rgba();
            let bars: Vec<_> = (0..)
                .zip(&self.groups)
                .filter_map(|(group, (_, values))| {
                    let value = (*values.get(number_of_series)?)?;
                    Some((value, group * step + place * BAR + BAR / 2))
                })
                .collect();
            let rectangles = bars.iter().map(|(value, top)| {
                Rectangle::new([(from, top + 1), (*value, top + BAR - 1)], colour.filled())
            });
            chart.draw_series(rectangles)?.label(name).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled())
            });
            chart.draw_series(bars.iter().map(|(value, top)| {
                EmptyElement::at((*value, top + BAR / 2))
                    + Text::new(number(*value), (4, 2 - TEXT / 2), (FONT, TEXT - 1))
            }))?;
        }
        if series > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE)
                .label_font((FONT, TEXT))
                .draw()?;
        }
        root.present()?;
        Ok(())
    }
}

impl Line {
    fn draw(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let last = self.points.last().map_or(1.0, |point| point.0);
        let most = self.points.iter().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max);
        let root = SVGBackend::new(path, (WIDTH, 300)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, (FONT, TEXT + 4))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..last, 0.0..most * 1.1)?;
        chart
            .configure_mesh()
            .x_desc("seconds")
            .max_light_lines(1)
            .x_label_formatter(&|value| number(*value))
            .y_label_formatter(&|value| number(*value))
            .label_style((FONT, TEXT))
            .draw()?;
        let points = self.points.iter().copied();
        chart.draw_series(LineSeries::new(points, Palette99::pick(0).stroke_width(2)))?;
        root.present()?;
        Ok(())
    }
}

/// A number as short as it tells enough.
pub fn number(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if value >= 1_000.0 {
        thousands(value.round() as i64)
    } else if value >= 10.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.1}").trim_end_matches(".0").to_owned()
    } else {
        format!("{value:.2}")
    }
}

fn thousands(number: i64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}
