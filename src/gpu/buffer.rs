//! Device buffers: allocation that reports failure, uploads and readbacks.

use super::{Gpu, GpuError};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// A buffer on the device, freed with its last handle.
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<Inner>,
}

struct Inner {
    raw: wgpu::Buffer,
    size: u64,
    /// Bytes of device memory.
    counted: u64,
    gpu: Gpu,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.gpu.shared.allocated.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// A part of a buffer, in bytes.
#[derive(Clone)]
pub struct BufferSlice {
    pub buffer: Buffer,
    pub offset: u64,
    pub size: u64,
}

/// Bytes that [`Gpu::allocate`] takes for `size`: at least 16, and a multiple of that.
pub fn allocation(size: u64) -> u64 {
    size.max(16).next_multiple_of(16)
}

impl Gpu {
    /// Allocates `size` bytes (rounded up to 16), zeroed. `what` names it in errors.
    ///
    /// # Errors
    /// [`GpuError::OverLimit`], [`GpuError::OverMemoryLimit`] and [`GpuError::OutOfMemory`].
    pub fn allocate(&self, what: &str, size: u64) -> Result<Buffer, GpuError> {
        self.check()?;
        let size = allocation(size);
        GpuError::of_buffer(what, size, &self.profile()).map_or(Ok(()), Err)?;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        self.create(what, size, usage)
    }

    /// [`Gpu::allocate`] in memory of the host, which the device reads and writes over the bus; it counts as no memory of the
    /// device.
    ///
    /// # Errors
    /// [`GpuError::NoHostMemory`], [`GpuError::OverLimit`] and [`GpuError::OutOfHostMemory`].
    pub fn allocate_on_host(&self, what: &str, size: u64) -> Result<Buffer, GpuError> {
        if !self.profile().host_buffers {
            return Err(GpuError::NoHostMemory);
        }
        let size = allocation(size);
        GpuError::of_buffer(what, size, &self.profile()).map_or(Ok(()), Err)?;
        // a buffer that the host could read through a map lies in its memory on every backend; one to write could lie in the device's
        let usage = wgpu::BufferUsages::MAP_READ
            | wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        let raw = self.raw_buffer(what, size, usage).map_err(|error| match error {
            GpuError::OutOfMemory { what, bytes } => GpuError::OutOfHostMemory { what, bytes },
            other => other,
        })?;
        Ok(Buffer { inner: Arc::new(Inner { raw, size, counted: 0, gpu: self.clone() }) })
    }

    fn create(&self, what: &str, size: u64, usage: wgpu::BufferUsages) -> Result<Buffer, GpuError> {
        self.within_limit(what, size)?;
        let raw = self.raw_buffer(what, size, usage)?;
        self.shared.allocated.fetch_add(size, Ordering::Relaxed);
        Ok(Buffer { inner: Arc::new(Inner { raw, size, counted: size, gpu: self.clone() }) })
    }

    fn raw_buffer(&self, what: &str, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, GpuError> {
        let device = &self.shared.device;
        let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let raw = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size,
            usage,
            mapped_at_creation: false,
        });
        if pollster::block_on(scope.pop()).is_some() {
            return Err(GpuError::OutOfMemory { what: what.to_string(), bytes: size });
        }
        self.check()?;
        Ok(raw)
    }

    /// A uniform buffer with this content, a multiple of four bytes.
    ///
    /// # Errors
    /// [`GpuError::OverLimit`], [`GpuError::OverMemoryLimit`] and [`GpuError::OutOfMemory`].
    pub(super) fn uniform(&self, content: &[u8]) -> Result<Buffer, GpuError> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let (what, size) = ("kernel parameters", content.len() as u64);
        GpuError::of_buffer(what, size, &self.profile()).map_or(Ok(()), Err)?;
        let buffer = self.create(what, size, usage)?;
        self.shared.queue.write_buffer(buffer.raw(), 0, content);
        Ok(buffer)
    }

    /// Copies parts of buffers to the host, in one submission, after everything submitted before; waits for it.
    ///
    /// # Errors
    /// [`GpuError::Lost`] and whatever else the device reported.
    pub fn read(&self, parts: &[BufferSlice]) -> Result<Vec<Vec<u8>>, GpuError> {
        self.read_later(parts)?.wait()
    }

    /// Submits the copy of [`Gpu::read`] and returns: later submissions may change what was copied.
    ///
    /// # Errors
    /// What the device reported before.
    pub fn read_later(&self, parts: &[BufferSlice]) -> Result<Readback, GpuError> {
        self.check()?;
        let total: u64 = parts.iter().map(|p| p.size.next_multiple_of(4)).sum();
        let staging = self.shared.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: total.max(4),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.shared.device.create_command_encoder(&Default::default());
        let mut at = 0;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for part in parts {
            let size = part.size.next_multiple_of(4);
            encoder.copy_buffer_to_buffer(part.buffer.raw(), part.offset, &staging, at, size);
            ranges.push(at..at + part.size);
            at += size;
        }
        let submission = self.shared.queue.submit([encoder.finish()]);
        let done = Arc::new(OnceLock::new());
        let at = Arc::clone(&done);
        staging.map_async(wgpu::MapMode::Read, .., move |_| {
            // the first time is the one that counts
            let _ = at.set(Instant::now());
        });
        Ok(Readback { gpu: self.clone(), staging, ranges, submission, done })
    }
}

/// A copy on its way to the host.
pub struct Readback {
    gpu: Gpu,
    staging: wgpu::Buffer,
    ranges: Vec<Range<u64>>,
    submission: wgpu::SubmissionIndex,
    done: Arc<OnceLock<Instant>>,
}

impl Readback {
    /// Waits for the copy, not for what was submitted after it, and gives its parts.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub fn wait(self) -> Result<Vec<Vec<u8>>, GpuError> {
        Ok(self.wait_timed()?.0)
    }

    /// [`Readback::wait`], and when the copy was first seen to be done: before the wait, where the device was asked in
    /// between.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub fn wait_timed(self) -> Result<(Vec<Vec<u8>>, Instant), GpuError> {
        self.gpu.wait_for(self.submission)?;
        let view = self.staging.get_mapped_range(..).map_err(|e| GpuError::Lost(e.to_string()))?;
        let parts =
            self.ranges.into_iter().map(|r| view[r.start as usize..r.end as usize].to_vec()).collect();
        Ok((parts, self.done.get().copied().unwrap_or_else(Instant::now)))
    }
}

impl Buffer {
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    pub fn slice(&self, offset: u64, size: u64) -> BufferSlice {
        BufferSlice { buffer: self.clone(), offset, size }
    }

    pub fn whole(&self) -> BufferSlice {
        self.slice(0, self.size())
    }

    pub(super) fn raw(&self) -> &wgpu::Buffer {
        &self.inner.raw
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.inner.gpu
    }
}

impl BufferSlice {
    /// Writes `bytes` (a multiple of four) at the start of the slice, before the next submission.
    pub fn write(&self, bytes: &[u8]) {
        debug_assert!(bytes.len() as u64 <= self.size && bytes.len().is_multiple_of(4));
        self.buffer.gpu().shared.queue.write_buffer(self.buffer.raw(), self.offset, bytes);
    }

    /// A part of this slice.
    pub fn part(&self, offset: u64, size: u64) -> BufferSlice {
        BufferSlice { buffer: self.buffer.clone(), offset: self.offset + offset, size }
    }
}
