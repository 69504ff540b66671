//! Matrices in ggml's hands, and products with them.
//!
//! Each product is a graph of one node, as small as ggml has them: headers of three tensors in a buffer
//! of their own, whose data are the weights, the caller's activations and the caller's output.

use crate::memory::Aligned;
use crate::{Error, sys};
use hurtle_kernels::matmul::Matrix;
use hurtle_quant::WeightType;
use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

/// ggml's limit on threads.
const MAX_THREADS: usize = 512;

/// Nodes that a graph has room for; it has one.
const GRAPH_SIZE: usize = 4;

/// ggml's threads and work memory, shared by the matrices that use them one after the other.
#[derive(Debug, Default)]
pub(crate) struct Compute {
    threads: Option<Threads>,
    /// Headers of tensors and of the graph.
    headers: Aligned,
    /// What the product works on: the quantized activations.
    work: Aligned,
}

/// ggml's thread pool.
#[derive(Debug)]
struct Threads {
    pool: NonNull<sys::ggml_threadpool>,
    n_threads: usize,
}

// SAFETY: the pool is used by one thread at a time, and ggml does not mind which.
unsafe impl Send for Threads {}

impl Threads {
    fn new(n_threads: usize) -> Self {
        // SAFETY: ggml fills the parameters in, then reads them; it ends the process if it gets no threads.
        let pool = unsafe {
            let mut params = sys::ggml_threadpool_params_default(n_threads as c_int);
            sys::ggml_threadpool_new(&mut params)
        };
        let pool = NonNull::new(pool).expect("ggml checks its allocations");
        Self { pool, n_threads }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // SAFETY: the pool is ours and no graph runs on it.
        unsafe { sys::ggml_threadpool_free(self.pool.as_ptr()) };
    }
}

/// A context for headers, which lie in a buffer that it borrows.
struct Headers<'a> {
    context: NonNull<sys::ggml_context>,
    _buffer: PhantomData<&'a mut Aligned>,
}

impl<'a> Headers<'a> {
    /// Room for `n_tensors` tensors and a graph.
    fn new(buffer: &'a mut Aligned, n_tensors: usize) -> Self {
        // SAFETY: both functions return sizes; the memory is aligned, as large as it says, and borrowed
        // for as long as the context lives.
        let context = unsafe {
            let graph = sys::ggml_graph_overhead_custom(GRAPH_SIZE, false);
            let mem_size = n_tensors * sys::ggml_tensor_overhead() + graph;
            let mem_buffer = buffer.sized(mem_size).as_mut_ptr().cast();
            sys::ggml_init(sys::ggml_init_params { mem_size, mem_buffer, no_alloc: true })
        };
        let context = NonNull::new(context).expect("ggml checks its allocations");
        Self { context, _buffer: PhantomData }
    }

    /// The header of a tensor `[n_rows, n_cols]` without data.
    ///
    /// # Safety
    /// It must not be used after the context, and the context must have room for it.
    unsafe fn tensor(&self, ty: WeightType, n_rows: usize, n_cols: usize) -> *mut sys::ggml_tensor {
        let ty = ty.id() as sys::ggml_type;
        // SAFETY: the context lives; the shape is that of data in memory, so that it fits ggml's numbers.
        unsafe { sys::ggml_new_tensor_2d(self.context.as_ptr(), ty, n_cols as i64, n_rows as i64) }
    }
}

impl Drop for Headers<'_> {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and what was in it is not used any more.
        unsafe { sys::ggml_free(self.context.as_ptr()) };
    }
}

/// How ggml keeps weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As in the file.
    File,
    /// Rows interleaved when the matrix is made, for the types and shapes that ggml has such kernels for.
    /// (ggml's buffers for AMX are not used.)
    Repacked,
}

impl Layout {
    /// ggml's buffers with this layout. `None` if it was built without them.
    fn buffer_type(self) -> Option<sys::ggml_backend_buffer_type_t> {
        match self {
            // SAFETY: returns a constant.
            Layout::File => Some(unsafe { sys::ggml_backend_cpu_buffer_type() }),
            Layout::Repacked => extra_buffer_type(c"CPU_REPACK"),
        }
    }
}

/// The buffer type of that name among those that ggml's processor backend has beside its plain ones.
fn extra_buffer_type(name: &CStr) -> Option<sys::ggml_backend_buffer_type_t> {
    type GetExtra =
        unsafe extern "C" fn(sys::ggml_backend_dev_t) -> *mut sys::ggml_backend_buffer_type_t;
    // SAFETY: under this name ggml has a function of this type (`ggml_backend_dev_get_extra_bufts_t`), or
    // nothing. What it returns is a constant list that ends in null, of types that have names.
    unsafe {
        let reg = sys::ggml_backend_cpu_reg();
        let get = c"ggml_backend_dev_get_extra_bufts".as_ptr();
        let get = sys::ggml_backend_reg_get_proc_address(reg, get);
        let get = std::mem::transmute::<*mut c_void, Option<GetExtra>>(get)?;
        let mut next = get(sys::ggml_backend_reg_dev_get(reg, 0));
        while !next.is_null() && !(*next).is_null() {
            if CStr::from_ptr(sys::ggml_backend_buft_name(*next)) == name {
                return Some(*next);
            }
            next = next.add(1);
        }
    }
    None
}

/// A matrix in memory of ggml.
#[derive(Debug)]
pub struct GgmlMatrix {
    compute: Arc<Mutex<Compute>>,
    ty: WeightType,
    n_rows: usize,
    n_cols: usize,
    layout: Layout,
    buffer: NonNull<sys::ggml_backend_buffer>,
    /// Of the tensor in the buffer: where it is, and what kernels it has.
    data: *mut c_void,
    extra: *mut c_void,
}

// SAFETY: after `new` the buffer is only read, and it can be freed by any thread.
unsafe impl Send for GgmlMatrix {}
// SAFETY: as above; products are computed one at a time, under the lock of `compute`.
unsafe impl Sync for GgmlMatrix {}

impl Drop for GgmlMatrix {
    fn drop(&mut self) {
        // SAFETY: the buffer is ours, and no product is being computed: those borrow the matrix.
        unsafe { sys::ggml_backend_buffer_free(self.buffer.as_ptr()) };
    }
}

impl GgmlMatrix {
    /// Copies `matrix` to ggml's memory.
    pub(crate) fn new(
        compute: &Arc<Mutex<Compute>>,
        matrix: &Matrix<'_>,
        layout: Layout,
    ) -> Result<Self, Error> {
        let (ty, n_rows, n_cols) = (matrix.ty(), matrix.n_rows(), matrix.n_cols());
        if n_rows == 0 {
            return Err(Error::Empty { ty });
        }
        let what = "matrix product";
        crate::formats::activation_type(ty).ok_or(Error::Unsupported { ty, what })?;
        let repacked = Error::Unsupported { ty, what: "interleaved layout of this shape" };
        let buffer_type = layout.buffer_type().ok_or(repacked.clone())?;

        let mut memory = Aligned::default();
        let headers = Headers::new(&mut memory, 1);
        // SAFETY: the tensor is not used after `headers`, which has room for one.
        let tensor = unsafe { headers.tensor(ty, n_rows, n_cols) };
        // SAFETY: the tensor is a header without data; its type is `buffer_type`'s to lay out.
        let (n_bytes, buffer) = unsafe {
            let n_bytes = sys::ggml_backend_buft_get_alloc_size(buffer_type, tensor);
            (n_bytes, sys::ggml_backend_buft_alloc_buffer(buffer_type, n_bytes))
        };
        let buffer = NonNull::new(buffer).ok_or(Error::Memory { ty, n_bytes })?;
        let (data, extra) = (ptr::null_mut(), ptr::null_mut());
        let compute = Arc::clone(compute);
        let mut new = Self { compute, ty, n_rows, n_cols, layout, buffer, data, extra };
        // SAFETY: the buffer was made for the tensor, which has no data yet. A buffer of interleaved rows
        // can be written if it gave the tensor kernels, and only at once.
        unsafe {
            let base = sys::ggml_backend_buffer_get_base(buffer.as_ptr());
            let status = sys::ggml_backend_tensor_alloc(buffer.as_ptr(), tensor, base);
            assert_eq!(status, sys::GGML_STATUS_SUCCESS, "a buffer of its own takes the tensor");
            if layout == Layout::Repacked && (*tensor).extra.is_null() {
                return Err(repacked);
            }
            let (found, bytes) = (sys::ggml_nbytes(tensor), matrix.bytes());
            if found != bytes.len() {
                let expected = bytes.len();
                return Err(Error::Length { ty, what: "bytes of a tensor", expected, found });
            }
            let copy = Aligned::copy_of_unaligned(bytes);
            let source = copy.as_ref().map_or(bytes.as_ptr().cast(), Aligned::as_ptr);
            sys::ggml_backend_tensor_set(tensor, source, 0, bytes.len());
            (new.data, new.extra) = ((*tensor).data, (*tensor).extra);
        }
        Ok(new)
    }

    /// Weight type.
    pub fn ty(&self) -> WeightType {
        self.ty
    }

    /// Outputs.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Inputs.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// How ggml keeps it.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// `out[token, row] = weights[row] · x[token]`, by ggml's `mul_mat` on `n_threads` of ggml's threads.
    ///
    /// `x` is `[n_tokens, n_cols]`, `out` is `[n_tokens, n_rows]`. ggml quantizes the activations to the
    /// type that [`activation_type`](crate::formats::activation_type) names. Products of matrices that
    /// come from one [`Ggml`](crate::Ggml) are computed one after the other.
    ///
    /// # Panics
    /// If a length does not fit the matrix.
    pub fn matmul(&self, n_threads: usize, x: &[f32], out: &mut [f32]) {
        let n_cols = self.n_cols;
        assert!(x.len().is_multiple_of(n_cols), "{} activations for rows of {n_cols}", x.len());
        let n_tokens = x.len() / n_cols;
        assert_eq!(out.len(), n_tokens * self.n_rows, "output");
        if n_tokens == 0 {
            return;
        }
        let n_threads = n_threads.clamp(1, MAX_THREADS);
        // What a panic left behind is overwritten.
        let mut compute = self.compute.lock().unwrap_or_else(PoisonError::into_inner);
        let Compute { threads, headers, work } = &mut *compute;
        // ggml's threads poll for the next graph: no more of them than take part.
        if threads.as_ref().is_none_or(|threads| threads.n_threads != n_threads) {
            *threads = None;
            *threads = Some(Threads::new(n_threads));
        }
        let pool = threads.as_ref().map_or(ptr::null_mut(), |threads| threads.pool.as_ptr());
        let headers = Headers::new(headers, 3);
        // SAFETY: the headers have room for three tensors and a graph, which are not used after them. The
        // lengths of weights, activations and output were checked, and all three outlive the call. ggml
        // writes to the output and the work memory only, and does not return before its threads are done.
        let status = unsafe {
            let weights = headers.tensor(self.ty, self.n_rows, n_cols);
            (*weights).buffer = self.buffer.as_ptr();
            (*weights).data = self.data;
            (*weights).extra = self.extra;
            let activations = headers.tensor(WeightType::F32, n_tokens, n_cols);
            (*activations).data = x.as_ptr().cast_mut().cast();
            let product = sys::ggml_mul_mat(headers.context.as_ptr(), weights, activations);
            (*product).data = out.as_mut_ptr().cast();
            let graph = sys::ggml_new_graph_custom(headers.context.as_ptr(), GRAPH_SIZE, false);
            sys::ggml_build_forward_expand(graph, product);
            let mut plan = sys::ggml_graph_plan(graph, n_threads as c_int, pool);
            plan.work_data = work.sized(plan.work_size).as_mut_ptr();
            sys::ggml_graph_compute(graph, &mut plan)
        };
        assert_eq!(status, sys::GGML_STATUS_SUCCESS, "nothing can abort a product");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_buffer_types_are_found_by_name() {
        crate::init();
        assert!(extra_buffer_type(c"CPU_REPACK").is_some());
        assert!(extra_buffer_type(c"CPU_REPAC").is_none());
    }
}
