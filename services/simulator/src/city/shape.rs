//! Plane geometry in metres: points, rings, soft outlines, and lines cut where they leave a region.

/// A point of the plane: metres east and north of the city's middle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// Metres east.
    pub(super) x: f64,
    /// Metres north.
    pub(super) y: f64,
}

impl Point {
    pub(super) const fn new(x: f64, y: f64) -> Self {
        Self { x, y }
    }

    /// Metres to `other`.
    pub(super) fn distance(self, other: Self) -> f64 {
        (self.x - other.x).hypot(self.y - other.y)
    }

    /// The point at `share` of the way to `other`.
    pub(super) fn lerp(self, other: Self, share: f64) -> Self {
        Self::new(self.x + (other.x - self.x) * share, self.y + (other.y - self.y) * share)
    }

    /// Moved by that many metres.
    pub(super) fn shifted(self, dx: f64, dy: f64) -> Self {
        Self::new(self.x + dx, self.y + dy)
    }
}

/// Whether `point` lies inside the ring (even-odd rule).
pub(super) fn contains(ring: &[Point], point: Point) -> bool {
    let Some(mut previous) = ring.last().copied() else { return false };
    let mut inside = false;
    for &current in ring {
        let crosses = (current.y > point.y) != (previous.y > point.y);
        if crosses {
            let x = current.x + (point.y - current.y) / (previous.y - current.y) * (previous.x - current.x);
            if point.x < x {
                inside = !inside;
            }
        }
        previous = current;
    }
    inside
}

/// The ring's area in square metres, positive where it runs counter-clockwise.
pub(super) fn area(ring: &[Point]) -> f64 {
    let Some(mut previous) = ring.last().copied() else { return 0.0 };
    let mut twice = 0.0;
    for &current in ring {
        twice += previous.x * current.y - current.x * previous.y;
        previous = current;
    }
    twice / 2.0
}

/// The ring's centre of mass.
pub(super) fn centroid(ring: &[Point]) -> Point {
    let Some(mut previous) = ring.last().copied() else { return Point::new(0.0, 0.0) };
    let (mut x, mut y) = (0.0, 0.0);
    for &current in ring {
        let cross = previous.x * current.y - current.x * previous.y;
        x += (previous.x + current.x) * cross;
        y += (previous.y + current.y) * cross;
        previous = current;
    }
    let six_areas = 6.0 * area(ring);
    Point::new(x / six_areas, y / six_areas)
}

/// The part of a convex ring that is nearer to `a` than to `b`.
pub(super) fn nearer_half(ring: &[Point], a: Point, b: Point) -> Vec<Point> {
    let middle = a.lerp(b, 0.5);
    let side = |p: Point| (p.x - middle.x) * (b.x - a.x) + (p.y - middle.y) * (b.y - a.y);
    let mut kept = Vec::with_capacity(ring.len() + 1);
    for (index, &current) in ring.iter().enumerate() {
        let next = ring[(index + 1) % ring.len()];
        let (here, there) = (side(current), side(next));
        if here <= 0.0 {
            kept.push(current);
        }
        if (here < 0.0 && there > 0.0) || (here > 0.0 && there < 0.0) {
            kept.push(current.lerp(next, here / (here - there)));
        }
    }
    kept
}

/// The points from `a` to `b`, both included, at most `step` metres apart. The same points either way round, so that
/// neighbours share their border to the last digit.
pub(super) fn densify(a: Point, b: Point, step: f64) -> Vec<Point> {
    let backwards = (b.x, b.y) < (a.x, a.y);
    let (from, to) = if backwards { (b, a) } else { (a, b) };
    let pieces = (from.distance(to) / step).ceil().max(1.0) as usize;
    let mut points: Vec<_> = (0..=pieces).map(|i| from.lerp(to, i as f64 / pieces as f64)).collect();
    if backwards {
        points.reverse();
    }
    points
}

/// The line without the points that are within `tolerance` metres of it anyway (Douglas-Peucker).
pub(super) fn simplify(line: &[Point], tolerance: f64) -> Vec<Point> {
    let (Some(&first), Some(&last)) = (line.first(), line.last()) else { return Vec::new() };
    let mut furthest = (0, 0.0);
    for (index, &point) in line.iter().enumerate() {
        let distance = nearest_on_segment(point, first, last).distance(point);
        if distance > furthest.1 {
            furthest = (index, distance);
        }
    }
    if furthest.1 <= tolerance {
        return if line.len() > 1 { vec![first, last] } else { vec![first] };
    }
    let mut simple = simplify(&line[..=furthest.0], tolerance);
    simple.pop();
    simple.extend(simplify(&line[furthest.0..], tolerance));
    simple
}

fn nearest_on_segment(point: Point, a: Point, b: Point) -> Point {
    let length_squared = (b.x - a.x).powi(2) + (b.y - a.y).powi(2);
    if length_squared <= f64::EPSILON {
        return a;
    }
    let along = ((point.x - a.x) * (b.x - a.x) + (point.y - a.y) * (b.y - a.y)) / length_squared;
    a.lerp(b, along.clamp(0.0, 1.0))
}

/// The place of the line that is nearest to `point`; `point` itself for a line of less than two points.
pub(super) fn nearest_on_line(point: Point, line: &[Point]) -> Point {
    let mut nearest: Option<Point> = None;
    for pair in line.windows(2) {
        let place = nearest_on_segment(point, pair[0], pair[1]);
        if nearest.is_none_or(|known| place.distance(point) < known.distance(point)) {
            nearest = Some(place);
        }
    }
    nearest.unwrap_or(point)
}

/// Metres from `point` to the nearest place of the line.
pub(super) fn distance_to_line(point: Point, line: &[Point]) -> f64 {
    nearest_on_line(point, line).distance(point)
}

/// The line's length in metres.
pub(super) fn length(line: &[Point]) -> f64 {
    line.windows(2).map(|pair| pair[0].distance(pair[1])).sum()
}

/// The pieces of a finely sampled line on which `inside` holds, each ended where it stops to hold.
pub(super) fn pieces_inside(line: &[Point], inside: impl Fn(Point) -> bool) -> Vec<Vec<Point>> {
    let mut pieces = Vec::new();
    let mut current: Vec<Point> = Vec::new();
    let mut previous: Option<(Point, bool)> = None;
    for &point in line {
        let here = inside(point);
        match previous {
            Some((before, false)) if here => current.push(border_between(point, before, &inside)),
            Some((before, true)) if !here => {
                current.push(border_between(before, point, &inside));
                pieces.push(std::mem::take(&mut current));
            }
            _ => {}
        }
        if here {
            current.push(point);
        }
        previous = Some((point, here));
    }
    if current.len() > 1 {
        pieces.push(current);
    }
    pieces
}

/// The last place on the way from `within` to `without` that is still inside, to a metre or so.
fn border_between(mut within: Point, mut without: Point, inside: &impl Fn(Point) -> bool) -> Point {
    /// Halvings of a step of some 15 m: past this the rounding of the output is coarser.
    const HALVINGS: usize = 4;
    for _ in 0..HALVINGS {
        let middle = within.lerp(without, 0.5);
        if inside(middle) {
            within = middle;
        } else {
            without = middle;
        }
    }
    within
}

/// A ribbon around a line: `half_width(share of the way)` metres to each side.
pub(super) fn ribbon(line: &[Point], half_width: impl Fn(f64) -> f64) -> Vec<Point> {
    let mut ring = offset(line, &half_width);
    let mut other = offset(line, |share| -half_width(share));
    other.reverse();
    ring.append(&mut other);
    ring
}

/// The line moved sideways, positive to its left.
pub(super) fn offset(line: &[Point], distance: impl Fn(f64) -> f64) -> Vec<Point> {
    let last = line.len().saturating_sub(1);
    let mut moved = Vec::with_capacity(line.len());
    for (index, &point) in line.iter().enumerate() {
        let before = line[index.saturating_sub(1)];
        let after = line[(index + 1).min(last)];
        let span = before.distance(after).max(f64::EPSILON);
        let metres = distance(index as f64 / last.max(1) as f64);
        moved.push(point.shifted(-(after.y - before.y) / span * metres, (after.x - before.x) / span * metres));
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(side: f64) -> Vec<Point> {
        vec![Point::new(0.0, 0.0), Point::new(side, 0.0), Point::new(side, side), Point::new(0.0, side)]
    }

    #[test]
    fn a_square_is_what_it_is() {
        let ring = square(10.0);
        assert!(contains(&ring, Point::new(5.0, 5.0)));
        assert!(!contains(&ring, Point::new(11.0, 5.0)));
        assert!((area(&ring) - 100.0).abs() < 1e-9);
        assert!(centroid(&ring).distance(Point::new(5.0, 5.0)) < 1e-9);
    }

    #[test]
    fn a_half_is_cut_along_the_bisector() {
        let half = nearer_half(&square(10.0), Point::new(0.0, 5.0), Point::new(10.0, 5.0));
        assert!((area(&half) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn a_border_has_the_same_points_from_both_sides() {
        let (a, b) = (Point::new(3.0, 1.0), Point::new(-7.0, 4.0));
        let mut back = densify(b, a, 1.5);
        back.reverse();
        assert_eq!(densify(a, b, 1.5), back);
    }

    #[test]
    fn straight_lines_need_two_points() {
        let line = densify(Point::new(0.0, 0.0), Point::new(100.0, 0.0), 10.0);
        assert_eq!(simplify(&line, 0.5).len(), 2);
        assert!((length(&line) - 100.0).abs() < 1e-9);
        assert!((distance_to_line(Point::new(50.0, 3.0), &line) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_line_is_cut_where_it_leaves() {
        let line = densify(Point::new(-10.0, 5.0), Point::new(20.0, 5.0), 3.0);
        let pieces = pieces_inside(&line, |p| contains(&square(10.0), p));
        assert_eq!(pieces.len(), 1);
        assert!((length(&pieces[0]) - 10.0).abs() < 1.0);
    }
}
