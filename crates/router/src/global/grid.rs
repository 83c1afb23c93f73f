//! From a request's values to pools, the best first. A pure function.

/// One side of a grid: a span cut into equal parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// Where the first part begins.
    pub min: f64,
    /// Where the last part ends; above `min`.
    pub max: f64,
    /// Parts, at least one.
    pub resolution: usize,
}

impl Axis {
    /// The part that a value lies in; the first or last one for values outside.
    pub fn part(&self, value: f64) -> usize {
        let step = (self.max - self.min) / self.resolution as f64;
        // A conversion from float saturates, and takes what is no number for zero.
        (((value - self.min) / step) as usize).min(self.resolution - 1)
    }

    /// The middle of the span: for who says nothing.
    pub fn middle(&self) -> f64 {
        self.min + (self.max - self.min) / 2.0
    }
}

/// A grid of any number of sides, each cell with the number of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    axes: Vec<Axis>,
    /// The last side's parts are next to each other.
    cells: Vec<usize>,
    pools: usize,
}

impl Grid {
    /// `cells` has as many entries as the product of the resolutions, each below `pools`; the reader of the configuration
    /// has seen to it.
    pub(super) fn new(axes: Vec<Axis>, cells: Vec<usize>, pools: usize) -> Self {
        debug_assert_eq!(cells.len(), axes.iter().map(|axis| axis.resolution).product::<usize>());
        Self { axes, cells, pools }
    }

    /// The sides.
    pub fn axes(&self) -> &[Axis] {
        &self.axes
    }

    /// All pools, the best first: the one of the cell that the values lie in, then those of ever more distant cells, at last
    /// those of no cell. Distance is the number of steps along the sides. One value for each side.
    pub fn choose(&self, values: &[f64]) -> Vec<usize> {
        let at: Vec<usize> = self.axes.iter().zip(values).map(|(axis, &value)| axis.part(value)).collect();
        let mut nearest = vec![usize::MAX; self.pools];
        for (place, &pool) in self.cells.iter().enumerate() {
            nearest[pool] = nearest[pool].min(self.steps(place, &at));
        }
        let mut pools: Vec<usize> = (0..self.pools).collect();
        pools.sort_by_key(|&pool| nearest[pool]);
        pools
    }

    /// Steps from a cell to another one.
    fn steps(&self, mut place: usize, at: &[usize]) -> usize {
        let mut steps = 0;
        for (axis, &part) in self.axes.iter().zip(at).rev() {
            steps += (place % axis.resolution).abs_diff(part);
            place /= axis.resolution;
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(min: f64, max: f64, resolution: usize) -> Axis {
        Axis { min, max, resolution }
    }

    #[test]
    fn a_value_lies_in_the_part_that_the_reference_says() {
        let isl = axis(0.0, 8000.0, 4);
        let parts: Vec<usize> =
            [-5.0, 0.0, 1999.0, 2000.0, 7999.0, 8000.0, 1e12].map(|value| isl.part(value)).into();
        assert_eq!(parts, [0, 0, 0, 1, 3, 3, 3]);
        assert_eq!(axis(10.0, 500.0, 1).part(499.0), 0);
        assert_eq!(axis(10.0, 500.0, 2).part(f64::NAN), 0);
        assert_eq!(axis(10.0, 500.0, 2).middle(), 255.0);
    }

    #[test]
    fn pools_come_in_the_order_of_their_distance() {
        // By length, then by target.
        let grid = Grid::new(vec![axis(0.0, 3.0, 3), axis(0.0, 2.0, 2)], vec![0, 0, 0, 1, 2, 2], 4);
        assert_eq!(grid.choose(&[0.0, 0.0]), [0, 1, 2, 3]);
        assert_eq!(grid.choose(&[1.5, 1.5]), [1, 0, 2, 3]);
        assert_eq!(grid.choose(&[2.5, 0.5]), [2, 0, 1, 3]);
        let cube = Grid::new(vec![axis(0.0, 2.0, 2); 3], (0..8).collect(), 8);
        assert_eq!(cube.choose(&[1.5, 0.5, 1.5])[0], 0b101);
        assert_eq!(cube.choose(&[1.5, 0.5, 1.5])[7], 0b010);
    }
}
