//! The list of elements, checked when it is built.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::call::{Call, Family};
use crate::error::Error;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One concern. Calls `next` exactly once or returns an error before it.
pub trait Element<F: Family>: Send + Sync + 'static {
    /// The noun of its file, as other elements name it in [`Element::requires`].
    fn name(&self) -> &'static str;

    /// Elements that must stand before this one.
    fn requires(&self) -> &'static [&'static str] {
        &[]
    }

    /// New connection or refresh. If `next` fails, undoes only what this call created.
    fn request<'a>(
        &'a self,
        call: &'a mut Call,
        request: F::Request,
        next: Next<'a, F>,
    ) -> BoxFuture<'a, Result<F::Reply, Error>>;

    /// Succeeds when there is nothing to close; always reaches the rest of the chain.
    fn close<'a>(
        &'a self,
        call: &'a mut Call,
        closing: F::Closing,
        next: Next<'a, F>,
    ) -> BoxFuture<'a, Result<(), Error>>;
}

/// The rest of the chain.
pub struct Next<'a, F: Family> {
    rest: &'a [Arc<dyn Element<F>>],
}

impl<F: Family> std::fmt::Debug for Next<'_, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Next({})", self.rest.len())
    }
}

impl<'a, F: Family> Next<'a, F> {
    /// The element after the last one is a fault in the list, which the builder refuses; a
    /// tail that calls `next` all the same gets an error, not a panic.
    pub fn request(
        self,
        call: &'a mut Call,
        request: F::Request,
    ) -> BoxFuture<'a, Result<F::Reply, Error>> {
        match self.rest.split_first() {
            Some((element, rest)) => element.request(call, request, Next { rest }),
            None => Box::pin(async { Err(Error::Internal("the chain has no tail".to_owned())) }),
        }
    }

    pub fn close(
        self,
        call: &'a mut Call,
        closing: F::Closing,
    ) -> BoxFuture<'a, Result<(), Error>> {
        match self.rest.split_first() {
            Some((element, rest)) => element.close(call, closing, Next { rest }),
            None => Box::pin(async { Ok(()) }),
        }
    }
}

/// An ordered list of elements, cheap to clone.
pub struct Chain<F: Family> {
    elements: Arc<[Arc<dyn Element<F>>]>,
}

impl<F: Family> Clone for Chain<F> {
    fn clone(&self) -> Self {
        Self {
            elements: Arc::clone(&self.elements),
        }
    }
}

impl<F: Family> std::fmt::Debug for Chain<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl<F: Family> Chain<F> {
    pub fn builder() -> Builder<F> {
        Builder {
            elements: Vec::new(),
        }
    }

    /// The list, as documentation.
    pub fn names(&self) -> Vec<&'static str> {
        self.elements.iter().map(|element| element.name()).collect()
    }

    /// Runs in a task of its own: a caller that goes away cannot stop a call half way.
    pub async fn request(&self, mut call: Call, request: F::Request) -> Result<F::Reply, Error> {
        let elements = Arc::clone(&self.elements);
        let run = async move { Next { rest: &elements }.request(&mut call, request).await };
        tokio::spawn(run)
            .await
            .unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
    }

    pub async fn close(&self, mut call: Call, closing: F::Closing) -> Result<(), Error> {
        let elements = Arc::clone(&self.elements);
        let run = async move { Next { rest: &elements }.close(&mut call, closing).await };
        tokio::spawn(run)
            .await
            .unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
    }
}

/// Why a list is no chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("element {element} needs {needs} before it")]
    Order {
        element: &'static str,
        needs: &'static str,
    },
    #[error("element {0} stands twice")]
    Twice(&'static str),
    #[error("a chain needs at least its tail")]
    Empty,
}

pub struct Builder<F: Family> {
    elements: Vec<Arc<dyn Element<F>>>,
}

impl<F: Family> std::fmt::Debug for Builder<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.elements.iter().map(|element| element.name()))
            .finish()
    }
}

impl<F: Family> Builder<F> {
    #[must_use]
    pub fn push(self, element: impl Element<F>) -> Self {
        self.push_shared(Arc::new(element))
    }

    /// For an element that others talk to as well (the monitor).
    #[must_use]
    pub fn push_shared(mut self, element: Arc<dyn Element<F>>) -> Self {
        self.elements.push(element);
        self
    }

    pub fn build(self) -> Result<Chain<F>, BuildError> {
        if self.elements.is_empty() {
            return Err(BuildError::Empty);
        }
        let names: Vec<_> = self.elements.iter().map(|element| element.name()).collect();
        for (position, element) in self.elements.iter().enumerate() {
            let before = &names[..position];
            if before.contains(&element.name()) {
                return Err(BuildError::Twice(element.name()));
            }
            if let Some(needs) = element
                .requires()
                .iter()
                .find(|needs| !before.contains(needs))
            {
                return Err(BuildError::Order {
                    element: element.name(),
                    needs,
                });
            }
        }
        Ok(Chain {
            elements: self.elements.into(),
        })
    }
}
