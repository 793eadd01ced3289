//! Which source directory a worker turns to next, and how many workers pay off. Pure: whoever has the workers tells what becomes of them.
//!
//! | file | what |
//! |---|---|
//! | `climb` | the number of workers, by what they get done |

mod climb;

use std::collections::{BTreeSet, HashMap};

pub use climb::{Climb, Done};

/// How urgent the next entry of a lane is: the lower goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rank {
    /// Goes before how many workers are in the lane already.
    pub class: u8,
    /// Decides between lanes with equally many.
    pub weight: u64,
}

/// Class, workers, weight, age.
type Place = (u8, usize, u64, u64);

/// Source directories with entries to copy. The most urgent class goes first, then the lane with the fewest workers, so that they are
/// spread before two meet in one.
#[derive(Debug)]
pub struct Lanes<T> {
    /// Most workers in one lane.
    per_lane: usize,
    next: u64,
    lanes: HashMap<u64, Lane<T>>,
    /// The lanes that a worker may turn to.
    open: BTreeSet<Place>,
    workers: usize,
}

#[derive(Debug)]
struct Lane<T> {
    value: T,
    /// Of the next entry; `None` = there is none.
    rank: Option<Rank>,
    workers: usize,
}

impl<T> Lane<T> {
    fn place(&self, id: u64, per_lane: usize) -> Option<Place> {
        let rank = self.rank.filter(|_| self.workers < per_lane)?;
        Some((rank.class, self.workers, rank.weight, id))
    }
}

impl<T> Lanes<T> {
    /// No lanes; at most `per_lane >= 1` workers in each.
    pub fn new(per_lane: usize) -> Self {
        Self {
            per_lane: per_lane.max(1),
            next: 0,
            lanes: HashMap::new(),
            open: BTreeSet::new(),
            workers: 0,
        }
    }

    /// A lane with at least one entry. The older of two equals goes first.
    pub fn add(&mut self, value: T, rank: Rank) -> u64 {
        let id = self.next;
        self.next += 1;
        self.lanes.insert(id, Lane { value, rank: None, workers: 0 });
        self.change(id, |lane| lane.rank = Some(rank));
        id
    }

    /// The lane that a worker enters now; `None` if there is none for it.
    pub fn enter(&mut self) -> Option<(u64, &mut T)> {
        let id = self.open.first()?.3;
        self.change(id, |lane| lane.workers += 1);
        self.workers += 1;
        self.lanes.get_mut(&id).map(|lane| (id, &mut lane.value))
    }

    /// What comes next in a lane; `None` = nothing ever again.
    pub fn set_next(&mut self, id: u64, rank: Option<Rank>) {
        self.change(id, |lane| lane.rank = rank);
    }

    /// A worker leaves the lane. Gives it back when it was the last and nothing comes any more.
    pub fn leave(&mut self, id: u64) -> Option<T> {
        self.workers -= 1;
        self.change(id, |lane| lane.workers -= 1);
        let lane = self.lanes.get(&id)?;
        let is_over = lane.rank.is_none() && lane.workers == 0;
        if is_over { self.lanes.remove(&id).map(|lane| lane.value) } else { None }
    }

    /// Workers in a lane.
    pub fn workers_in(&self, id: u64) -> usize {
        self.lanes.get(&id).map_or(0, |lane| lane.workers)
    }

    /// Workers in all lanes.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Whether a worker could enter one now.
    pub fn has_place(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether nobody works and nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    fn change(&mut self, id: u64, change: impl FnOnce(&mut Lane<T>)) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let before = lane.place(id, self.per_lane);
        change(lane);
        let after = lane.place(id, self.per_lane);
        if before != after {
            before.inspect(|place| _ = self.open.remove(place));
            self.open.extend(after);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rank(weight: u64) -> Rank {
        Rank { class: 1, weight }
    }

    #[test]
    fn workers_are_spread_before_two_meet() {
        let mut lanes = Lanes::new(usize::MAX);
        let ids: Vec<u64> = (0..3).map(|n| lanes.add(n, rank(0))).collect();
        let entered: Vec<u64> = (0..7).map(|_| lanes.enter().unwrap().0).collect();
        assert_eq!(entered, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(ids.iter().map(|id| lanes.workers_in(*id)).collect::<Vec<_>>(), [3, 2, 2]);
        assert!(lanes.leave(1).is_none());
        assert_eq!(lanes.enter().unwrap().0, 1);
    }

    // C1: many threads in one source directory.
    #[test]
    fn one_worker_per_directory_means_one() {
        let mut lanes = Lanes::new(1);
        lanes.add("a", rank(0));
        lanes.add("b", rank(0));
        assert!(lanes.enter().is_some() && lanes.enter().is_some());
        assert!(lanes.enter().is_none() && !lanes.has_place());
        lanes.set_next(0, None);
        assert_eq!(lanes.leave(0), Some("a"));
        assert!(lanes.enter().is_none(), "the other is busy");
        assert_eq!((lanes.leave(1), lanes.enter().unwrap().0), (None, 1));
    }

    #[test]
    fn what_is_urgent_comes_before_being_spread_and_weight_after() {
        let mut lanes = Lanes::new(usize::MAX);
        lanes.add("large", rank(9));
        lanes.add("small", rank(2));
        lanes.add("first", Rank { class: 0, weight: 9 });
        let mut next = || *lanes.enter().unwrap().1;
        assert_eq!([next(), next()], ["first", "first"]);
        lanes.set_next(2, None);
        let mut next = || *lanes.enter().unwrap().1;
        assert_eq!([next(), next(), next()], ["small", "large", "small"]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(u8, u64),
        Enter,
        Next(prop::sample::Index, Option<u64>),
        Leave(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            1 => (0..2u8, 0..4u64).prop_map(|(class, weight)| Step::Add(class, weight)),
            4 => Just(Step::Enter),
            1 => (any::<prop::sample::Index>(), prop::option::of(0..4u64))
                .prop_map(|(index, weight)| Step::Next(index, weight)),
            3 => any::<prop::sample::Index>().prop_map(Step::Leave),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// Against a list that is searched from end to end.
        #[test]
        fn the_next_lane_is_the_least_of_all(steps in steps(), per_lane in 1..4usize) {
            let mut lanes = Lanes::new(per_lane);
            let mut model: Vec<(u64, Option<Rank>, usize)> = Vec::new();
            let mut inside: Vec<u64> = Vec::new();
            for step in steps {
                match step {
                    Step::Add(class, weight) => {
                        let rank = Rank { class, weight };
                        model.push((lanes.add((), rank), Some(rank), 0));
                    }
                    Step::Enter => {
                        let open = model.iter_mut().filter(|lane| lane.1.is_some() && lane.2 < per_lane);
                        let least = open.min_by_key(|(id, rank, workers)| {
                            let rank = rank.unwrap();
                            (rank.class, *workers, rank.weight, *id)
                        });
                        let entered = lanes.enter().map(|(id, _)| id);
                        prop_assert_eq!(entered, least.as_ref().map(|lane| lane.0));
                        if let Some(lane) = least {
                            lane.2 += 1;
                            inside.push(lane.0);
                        }
                    }
                    Step::Next(index, weight) if !inside.is_empty() => {
                        let id = *index.get(&inside);
                        let rank = weight.map(|weight| Rank { class: 1, weight });
                        lanes.set_next(id, rank);
                        model.iter_mut().find(|lane| lane.0 == id).unwrap().1 = rank;
                    }
                    Step::Leave(index) if !inside.is_empty() => {
                        let id = inside.swap_remove(index.index(inside.len()));
                        let at = model.iter().position(|lane| lane.0 == id).unwrap();
                        model[at].2 -= 1;
                        let is_over = model[at].1.is_none() && model[at].2 == 0;
                        prop_assert_eq!(lanes.leave(id).is_some(), is_over);
                        if is_over {
                            model.remove(at);
                        }
                    }
                    Step::Next(..) | Step::Leave(..) => {}
                }
                prop_assert_eq!(lanes.workers(), inside.len());
                prop_assert_eq!(lanes.is_empty(), model.is_empty());
            }
        }
    }
}
