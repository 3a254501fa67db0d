//! The contract of an operation: meaning, gradient, launch and the f64 reference that tests it.

use super::{DType, Graph, GraphError, Launch, LaunchPlan, Shape, TensorType, Value};
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// One kind of tensor operation with its attributes.
///
/// Every method without a default is required on purpose: an operation without a gradient rule or a
/// reference does not compile.
pub trait Operation: Any + Debug + Send + Sync {
    fn name(&self) -> &'static str;

    /// The shape rule: types of the outputs, or what is wrong with the inputs.
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError>;

    /// Appends the gradient with respect to each wanted input.
    ///
    /// `node.gradients[i]` is the gradient of output i (`None` where nothing depends on it). A returned
    /// `None` means zero.
    ///
    /// # Errors
    /// [`GraphError::NotDifferentiable`] for a wanted input that has no gradient.
    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError>;

    /// Kernels, grid and cost on a device.
    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan;

    /// The same result in f64, plainly written.
    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor>;

    /// Shapes, types and values that the tests try.
    fn cases() -> Vec<Case>
    where
        Self: Sized;

    /// The input whose buffer this output overwrites.
    fn in_place(&self, _output: usize) -> Option<usize> {
        None
    }

    /// The input of the same type whose memory this output may take, where nobody reads that input afterwards; then
    /// [`Launch::replaces`] says so.
    fn may_replace(&self, _output: usize) -> Option<usize> {
        None
    }

    /// The same operation with one more input, of output 0's type, that is added to output 0.
    fn with_residual(&self) -> Option<Arc<dyn Operation>> {
        None
    }

    /// The same operation with one more input, a vector, that is added to each row of output 0; before a residual.
    fn with_bias(&self) -> Option<Arc<dyn Operation>> {
        None
    }

    /// Whether making the outputs again costs little beside keeping them: a pass over inputs that the reverse pass reads
    /// anyway. Operations whose input nobody else keeps (a rotary embedding) are not: their input would have to be kept
    /// in place of their output. Nor are sums: with a product they are stored as one, see [`Operation::with_residual`].
    fn is_cheap(&self) -> bool {
        false
    }

    /// Whether the kernel can add to this output instead of overwriting it.
    fn accumulates(&self, _output: usize) -> bool {
        false
    }
}

/// A node as its reverse rule sees it.
pub struct ReverseNode<'a> {
    pub inputs: &'a [Value],
    pub outputs: &'a [Value],
    pub gradients: &'a [Option<Value>],
    /// Per input: somebody needs its gradient.
    pub wanted: &'a [bool],
}

impl ReverseNode<'_> {
    /// Fails for the first wanted input of the given positions.
    pub fn refuse(&self, operation: &'static str, inputs: &[usize]) -> Result<(), GraphError> {
        match inputs.iter().find(|&&input| self.wanted[input]) {
            Some(&input) => Err(GraphError::NotDifferentiable { operation, input }),
            None => Ok(()),
        }
    }
}

/// A tensor of the f64 reference, row-major without padding. Indices are held as f64 as well.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceTensor {
    pub shape: Shape,
    pub data: Vec<f64>,
}

impl ReferenceTensor {
    pub fn zeros(shape: Shape) -> Self {
        ReferenceTensor { shape, data: vec![0.0; shape.elements()] }
    }

    pub fn from_fn(shape: Shape, f: impl FnMut(usize) -> f64) -> Self {
        ReferenceTensor { shape, data: (0..shape.elements()).map(f).collect() }
    }

    pub fn rows(&self) -> usize {
        self.shape.rows()
    }

    pub fn cols(&self) -> usize {
        self.shape.cols()
    }

    pub fn row(&self, row: usize) -> &[f64] {
        let cols = self.cols();
        &self.data[row * cols..(row + 1) * cols]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        let cols = self.cols();
        &mut self.data[row * cols..(row + 1) * cols]
    }

    /// The element as an index.
    pub fn index(&self, i: usize) -> usize {
        self.data[i] as usize
    }
}

/// One trial of an operation in the tests.
#[derive(Clone, Debug)]
pub struct Case {
    pub label: String,
    pub op: Arc<dyn Operation>,
    pub inputs: Vec<CaseInput>,
    /// Compare the gradient rule with central differences for the float inputs named here.
    pub gradients: Vec<usize>,
}

#[derive(Clone, Debug)]
pub struct CaseInput {
    pub ty: TensorType,
    /// Given values (indices, positions); otherwise random numbers of this spread.
    pub data: Option<Vec<f64>>,
    pub spread: f64,
}

impl CaseInput {
    pub fn random(dims: &[usize], dtype: DType) -> Self {
        CaseInput { ty: TensorType::new(Shape::new(dims), dtype), data: None, spread: 1.0 }
    }

    pub fn indices(values: impl IntoIterator<Item = u32>) -> Self {
        let data: Vec<f64> = values.into_iter().map(f64::from).collect();
        CaseInput {
            ty: TensorType::new(Shape::vector(data.len()), DType::U32),
            data: Some(data),
            spread: 0.0,
        }
    }

    pub fn values(dims: &[usize], dtype: DType, data: Vec<f64>) -> Self {
        CaseInput { ty: TensorType::new(Shape::new(dims), dtype), data: Some(data), spread: 0.0 }
    }
}

impl Case {
    pub fn new(label: impl Into<String>, op: impl Operation + 'static, inputs: Vec<CaseInput>) -> Self {
        Case { label: label.into(), op: Arc::new(op), inputs, gradients: Vec::new() }
    }

    pub fn gradients(mut self, inputs: &[usize]) -> Self {
        self.gradients = inputs.to_vec();
        self
    }
}
