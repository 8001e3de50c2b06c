//! One event at a time, on top of the columns.

use crate::abi::{NumberList, Reads};
use crate::batch::{BatchInterceptor, BatchView};
use crate::config::Config;
use crate::difference::{ColumnBuilder, Difference, HeaderBuilder, KeptRows};

/// One event of a batch, read in place.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    batch: &'a BatchView,
    reads: &'a Reads,
    row: usize,
}

impl<'a> Event<'a> {
    /// The body; empty if [`Reads`] did not name it.
    #[inline]
    pub fn body(self) -> &'a [u8] {
        self.batch.body().map_or(&[], |column| column.get(self.row))
    }

    /// Nanoseconds since the Unix epoch, UTC; 0 if [`Reads`] did not name the time.
    #[inline]
    pub fn time(self) -> i64 {
        self.batch.time().and_then(|times| times.get(self.row)).unwrap_or(0)
    }

    /// The value of a header; `None` if the event does not have it or [`Reads`] did not name it.
    #[inline]
    pub fn header(self, name: &str) -> Option<&'a str> {
        self.batch.header(self.reads.header_index(name)?)?.get_str(self.row)
    }

    /// The stream and the position in it; `None` if [`Reads`] did not name the identity.
    #[inline]
    pub fn identity(self) -> Option<(u64, u64)> {
        let (stream, position) = self.batch.identity()?;
        Some((stream.get(self.row)?, position.get(self.row)?))
    }

    /// The row in the batch, from 0.
    #[inline]
    pub fn row(self) -> usize {
        self.row
    }
}

/// A plugin that keeps events or drops them. Register it with [`filter!`](crate::filter).
pub trait Filter: Default {
    /// As in [`BatchInterceptor::OPTIONS`].
    const OPTIONS: &'static str = "";

    /// From the configuration. As it stands here: the default, and no configuration is accepted. Usually
    /// `config.parse()` into a type that derives `Deserialize`.
    fn open(config: Config) -> Result<Self, String> {
        config.none()?;
        Ok(Self::default())
    }

    /// The columns to look at.
    fn reads(&self) -> Reads {
        Reads::body()
    }

    /// Whether the event goes on.
    fn keep(&mut self, event: Event) -> bool;
}

/// A plugin that edits, splits, drops or rejects one event at a time. Register it with
/// [`interceptor!`](crate::interceptor).
pub trait Interceptor: Default {
    /// As in [`BatchInterceptor::OPTIONS`].
    const OPTIONS: &'static str = "";

    /// As in [`Filter::open`].
    fn open(config: Config) -> Result<Self, String> {
        config.none()?;
        Ok(Self::default())
    }

    /// The columns to look at **and those to change**: a column crosses back whole, so the rows that are not changed
    /// must be known. A change of a column that is not named here fails the batch with an error that says so.
    fn reads(&self) -> Reads {
        Reads::body()
    }

    /// One event. What `edit` is not told stays as it is; an event that nothing is said about goes on unchanged.
    fn intercept(&mut self, event: Event, edit: &mut Edit);
}

/// A [`Filter`] as a [`BatchInterceptor`].
#[doc(hidden)]
pub struct Kept<T> {
    filter: T,
    reads: Reads,
}

impl<T: Filter> BatchInterceptor for Kept<T> {
    const OPTIONS: &'static str = T::OPTIONS;

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let filter = T::open(config)?;
        let reads = filter.reads();
        Ok((Self { filter, reads: reads.clone() }, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let mut rows = KeptRows::with_capacity(batch.rows());
        for row in 0..batch.rows() {
            if self.filter.keep(Event { batch, reads: &self.reads, row }) {
                rows.push(row);
            }
        }
        let mut difference = Difference::unchanged();
        if rows.len() < batch.rows() {
            difference.keep_rows(rows);
        }
        Ok(difference)
    }
}

/// An [`Interceptor`] as a [`BatchInterceptor`].
#[doc(hidden)]
pub struct Events<T> {
    interceptor: T,
    reads: Reads,
}

impl<T: Interceptor> BatchInterceptor for Events<T> {
    const OPTIONS: &'static str = T::OPTIONS;

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let interceptor = T::open(config)?;
        let reads = interceptor.reads();
        Ok((Self { interceptor, reads: reads.clone() }, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let mut edit = Edit::new(batch, &self.reads);
        for row in 0..batch.rows() {
            edit.begin(row);
            self.interceptor.intercept(Event { batch, reads: &self.reads, row }, &mut edit);
            edit.end();
        }
        edit.finish()
    }
}

/// What happens to the event at hand.
pub struct Edit<'b> {
    batch: &'b BatchView,
    reads: &'b Reads,
    difference: Difference,
    /// The input row of every output row so far.
    rows: Vec<usize>,
    /// Whether those are all rows that are not rejected, in order.
    is_plain: bool,
    /// The columns, each made when its first change comes.
    body: Option<ColumnBuilder>,
    time: Option<NumberList<i64>>,
    headers: Vec<Option<HeaderBuilder>>,
    row: usize,
    is_settled: bool,
    pending: Pending,
    misuse: Option<String>,
}

/// The changes since the last output event.
#[derive(Default)]
struct Pending {
    body: Option<Vec<u8>>,
    time: Option<i64>,
    /// Header column, and its value or its removal.
    headers: Vec<(usize, Option<String>)>,
}

impl<'b> Edit<'b> {
    fn new(batch: &'b BatchView, reads: &'b Reads) -> Self {
        Self {
            batch,
            reads,
            difference: Difference::unchanged(),
            rows: Vec::with_capacity(batch.rows()),
            is_plain: true,
            body: None,
            time: None,
            headers: reads.headers.iter().map(|_| None).collect(),
            row: 0,
            is_settled: false,
            pending: Pending::default(),
            misuse: None,
        }
    }

    /// Changes the body.
    pub fn set_body(&mut self, body: impl Into<Vec<u8>>) {
        if !self.reads.body {
            self.misused("the body is changed but not read: add `.and_body()` to reads()".to_owned());
        }
        self.pending.body = Some(body.into());
    }

    /// Changes the event time: nanoseconds since the Unix epoch, UTC.
    pub fn set_time(&mut self, time: i64) {
        if !self.reads.time {
            self.misused("the time is changed but not read: add `.and_time()` to reads()".to_owned());
        }
        self.pending.time = Some(time);
    }

    /// Sets a header.
    pub fn set_header(&mut self, name: &str, value: impl Into<String>) {
        self.change_header(name, Some(value.into()));
    }

    /// Removes a header.
    pub fn remove_header(&mut self, name: &str) {
        self.change_header(name, None);
    }

    fn change_header(&mut self, name: &str, value: Option<String>) {
        let Some(index) = self.reads.header_index(name) else {
            self.misused(format!(
                "header `{name}` is changed but not read: add `.and_header(\"{name}\")` to reads()"
            ));
            return;
        };
        self.pending.headers.retain(|(other, _)| *other != index);
        self.pending.headers.push((index, value));
    }

    /// The event goes no further. It is not an error: it is counted as dropped.
    #[allow(clippy::should_implement_trait, reason = "the project's word for it")]
    pub fn drop(&mut self) {
        self.pending = Pending::default();
        self.is_plain = false;
        self.is_settled = true;
    }

    /// The event cannot be worked with, for this reason; the pipeline says where such events go. What was emitted
    /// from it before does not leave.
    pub fn reject(&mut self, reason: impl Into<String>) {
        if self.rows.last() == Some(&self.row) {
            self.misused("an event is rejected after a part of it was emitted".to_owned());
        }
        self.pending = Pending::default();
        self.difference.reject(self.row, reason);
        self.is_settled = true;
    }

    /// Sends the event on with the changes made since the last `emit`, and starts again from the event as it came in.
    /// Only needed to make several events of one: an event that was never emitted goes on by itself.
    pub fn emit(&mut self) {
        if self.rows.last() == Some(&self.row) {
            self.is_plain = false;
        }
        let pending = std::mem::take(&mut self.pending);
        self.write_body(pending.body);
        self.write_time(pending.time);
        self.write_headers(pending.headers);
        self.rows.push(self.row);
        self.is_settled = true;
    }

    fn write_body(&mut self, changed: Option<Vec<u8>>) {
        let Some(input) = self.batch.body() else { return };
        if changed.is_some() && self.body.is_none() {
            let mut column = ColumnBuilder::with_capacity(self.batch.rows(), input.data().len());
            self.rows.iter().for_each(|row| column.push(input.get(*row)));
            self.body = Some(column);
        }
        if let Some(column) = &mut self.body {
            column.push(changed.as_deref().unwrap_or_else(|| input.get(self.row)));
        }
    }

    fn write_time(&mut self, changed: Option<i64>) {
        let Some(input) = self.batch.time() else { return };
        if changed.is_some() && self.time.is_none() {
            self.time = Some(self.rows.iter().map(|row| input.get(*row).unwrap_or(0)).collect());
        }
        if let Some(column) = &mut self.time {
            column.push(changed.unwrap_or_else(|| input.get(self.row).unwrap_or(0)));
        }
    }

    fn write_headers(&mut self, changes: Vec<(usize, Option<String>)>) {
        for (index, _) in &changes {
            let (Some(input), Some(column @ None)) =
                (self.batch.header(*index), self.headers.get_mut(*index))
            else {
                continue;
            };
            let mut builder =
                HeaderBuilder::with_capacity(input.name(), self.batch.rows(), input.values().data().len());
            self.rows.iter().for_each(|row| builder.push_option(input.get_str(*row)));
            *column = Some(builder);
        }
        for (index, column) in self.headers.iter_mut().enumerate() {
            let (Some(input), Some(column)) = (self.batch.header(index), column) else { continue };
            match changes.iter().find(|(changed, _)| *changed == index) {
                Some((_, value)) => column.push_option(value.as_deref()),
                None => column.push_option(input.get_str(self.row)),
            }
        }
    }

    fn misused(&mut self, how: String) {
        self.misuse.get_or_insert(how);
    }

    fn begin(&mut self, row: usize) {
        self.row = row;
        self.is_settled = false;
    }

    fn end(&mut self) {
        if !self.is_settled {
            self.emit();
        }
        self.pending = Pending::default();
    }

    fn finish(self) -> Result<Difference, String> {
        if let Some(misuse) = self.misuse {
            return Err(format!("a mistake in the plugin: {misuse}"));
        }
        let mut difference = self.difference;
        if let Some(column) = self.body {
            difference.set_body(column);
        }
        if let Some(column) = self.time {
            difference.set_time(column);
        }
        for column in self.headers.into_iter().flatten() {
            difference.set_header(column);
        }
        if !self.is_plain {
            difference.keep_rows(self.rows.into_iter().collect());
        }
        Ok(difference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::BytesExt;
    use crate::testing::{self, Answer, TestEvent};

    /// Does what the body says.
    #[derive(Default)]
    struct Obedient;

    impl Interceptor for Obedient {
        fn reads(&self) -> Reads {
            Reads::body().and_time().and_header("a").and_header("b")
        }

        fn intercept(&mut self, event: Event, edit: &mut Edit) {
            match event.body() {
                b"drop" => edit.drop(),
                b"reject" => edit.reject("as told"),
                b"header" => edit.set_header("a", "new"),
                b"remove" => edit.remove_header("a"),
                b"time" => edit.set_time(event.time() + 1),
                b"body" => edit.set_body("other"),
                b"misuse" => edit.set_header("c", "x"),
                body => {
                    if let Some((first, second)) = body.split_at_bytes(b",") {
                        edit.set_body(first);
                        edit.emit();
                        edit.set_body(second);
                        edit.set_header("b", "second");
                        edit.emit();
                    }
                }
            }
        }
    }

    fn run(bodies: &[&str]) -> Result<Answer, String> {
        let (mut plugin, reads) = Events::<Obedient>::open(Config::new("{}"))?;
        let events: Vec<TestEvent> = bodies
            .iter()
            .map(|body| TestEvent {
                body: body.as_bytes().to_vec(),
                time: 7,
                headers: vec![("a".to_owned(), "old".to_owned())],
            })
            .collect();
        let difference = plugin.process(&testing::batch(&reads, &events))?;
        Ok(Answer::new(difference, events.len()))
    }

    #[test]
    fn nothing_said_is_nothing_changed() {
        assert!(run(&["x", "y"]).unwrap().is_unchanged());
    }

    #[test]
    fn rows_that_are_not_changed_keep_their_values() {
        let answer = run(&["x", "header", "remove", "y", "time", "body"]).unwrap();
        assert_eq!(answer.rows(), [0, 1, 2, 3, 4, 5]);
        let header: Vec<_> = (0..6).map(|row| answer.header("a", row)).collect();
        assert_eq!(header, [Some("old"), Some("new"), None, Some("old"), Some("old"), Some("old")]);
        assert_eq!(answer.headers(), ["a"]);
        assert_eq!((0..6).map(|row| answer.time(row)).collect::<Vec<_>>(), [7, 7, 7, 7, 8, 7].map(Some));
        assert_eq!(answer.body(5), Some(&b"other"[..]));
        assert_eq!(answer.body(0), Some(&b"x"[..]));
    }

    #[test]
    fn split_drop_and_reject_move_rows() {
        let answer = run(&["x", "drop", "one,two", "reject", "y"]).unwrap();
        assert_eq!(answer.rows(), [0, 2, 2, 4]);
        let bodies: Vec<_> = (0..4).map(|row| answer.body(row).unwrap()).collect();
        assert_eq!(bodies, [&b"x"[..], b"one", b"two", b"y"]);
        assert_eq!(answer.header("b", 1), None);
        assert_eq!(answer.header("b", 2), Some("second"));
        assert_eq!(answer.header("b", 3), None);
        assert_eq!(answer.rejected().collect::<Vec<_>>(), [(3, "as told")]);
    }

    #[test]
    fn a_rejection_alone_moves_nothing() {
        let answer = run(&["x", "reject", "y"]).unwrap();
        assert_eq!(answer.rows(), [0, 2]);
    }

    #[test]
    fn a_change_of_what_is_not_read_is_an_error_that_helps() {
        let error = run(&["misuse"]).map(|_| ()).unwrap_err();
        assert!(error.contains(".and_header(\"c\")"), "{error}");
    }

    #[derive(Default)]
    struct OnlyErrors;

    impl Filter for OnlyErrors {
        fn keep(&mut self, event: Event) -> bool {
            event.body().contains_bytes(b" 503 ")
        }
    }

    #[test]
    fn a_filter_keeps_rows() {
        let (mut plugin, _) = Kept::<OnlyErrors>::open(Config::new("{}")).unwrap();
        let batch = testing::bodies(&["a 503 b", "a 200 b", " 503 "]);
        let answer = Answer::new(plugin.process(&batch).unwrap(), 3);
        assert_eq!(answer.rows(), [0, 2]);
        assert!(Kept::<OnlyErrors>::open(Config::new(r#"{"x":1}"#)).is_err());
    }
}
