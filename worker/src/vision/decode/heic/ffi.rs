//! The few functions of libheif that are called, as its header has them since version 1.15. The crates that declare all of
//! them need a later one than Debian 12 has.
#![allow(non_camel_case_types, reason = "the library's own names")]

use std::ffi::{c_char, c_int, c_void};

pub(super) const COLORSPACE_RGB: c_int = 1;
pub(super) const CHROMA_INTERLEAVED_RGB: c_int = 10;
pub(super) const CHROMA_INTERLEAVED_RGBA: c_int = 11;
pub(super) const CHANNEL_INTERLEAVED: c_int = 10;
pub(super) const SUBERROR_END_OF_DATA: c_int = 100;

macro_rules! opaque {
    ($($name:ident),*) => {
        $(#[repr(C)]
        pub(super) struct $name {
            _private: [u8; 0],
        })*
    };
}

opaque!(heif_context, heif_image_handle, heif_image, heif_reading_options);

#[repr(C)]
pub(super) struct heif_error {
    pub(super) code: c_int,
    pub(super) subcode: c_int,
    pub(super) message: *const c_char,
}

/// Its beginning, as it is from version 3 of the structure on; the library makes it, and there may be more behind it.
#[repr(C)]
#[allow(dead_code, reason = "most of it is the library's alone")]
pub(super) struct heif_decoding_options {
    version: u8,
    ignore_transformations: u8,
    start_progress: *const c_void,
    on_progress: *const c_void,
    end_progress: *const c_void,
    progress_user_data: *mut c_void,
    pub(super) convert_hdr_to_8bit: u8,
    pub(super) strict_decoding: u8,
}

#[link(name = "heif")]
unsafe extern "C" {
    pub(super) fn heif_context_alloc() -> *mut heif_context;
    pub(super) fn heif_context_free(context: *mut heif_context);
    pub(super) fn heif_context_read_from_memory_without_copy(
        context: *mut heif_context,
        bytes: *const c_void,
        length: usize,
        options: *const heif_reading_options,
    ) -> heif_error;
    pub(super) fn heif_context_set_maximum_image_size_limit(context: *mut heif_context, maximum_width: c_int);
    pub(super) fn heif_context_set_max_decoding_threads(context: *mut heif_context, threads: c_int);
    pub(super) fn heif_context_get_primary_image_handle(
        context: *mut heif_context,
        handle: *mut *mut heif_image_handle,
    ) -> heif_error;
    pub(super) fn heif_image_handle_release(handle: *const heif_image_handle);
    pub(super) fn heif_image_handle_get_width(handle: *const heif_image_handle) -> c_int;
    pub(super) fn heif_image_handle_get_height(handle: *const heif_image_handle) -> c_int;
    pub(super) fn heif_image_handle_get_ispe_width(handle: *const heif_image_handle) -> c_int;
    pub(super) fn heif_image_handle_get_ispe_height(handle: *const heif_image_handle) -> c_int;
    pub(super) fn heif_image_handle_has_alpha_channel(handle: *const heif_image_handle) -> c_int;
    pub(super) fn heif_image_handle_get_list_of_metadata_block_IDs(
        handle: *const heif_image_handle,
        kind: *const c_char,
        ids: *mut u32,
        count: c_int,
    ) -> c_int;
    pub(super) fn heif_image_handle_get_metadata_size(handle: *const heif_image_handle, id: u32) -> usize;
    pub(super) fn heif_image_handle_get_metadata(
        handle: *const heif_image_handle,
        id: u32,
        out: *mut c_void,
    ) -> heif_error;
    pub(super) fn heif_decoding_options_alloc() -> *mut heif_decoding_options;
    pub(super) fn heif_decoding_options_free(options: *mut heif_decoding_options);
    pub(super) fn heif_decode_image(
        handle: *const heif_image_handle,
        image: *mut *mut heif_image,
        colorspace: c_int,
        chroma: c_int,
        options: *const heif_decoding_options,
    ) -> heif_error;
    pub(super) fn heif_image_release(image: *const heif_image);
    pub(super) fn heif_image_get_width(image: *const heif_image, channel: c_int) -> c_int;
    pub(super) fn heif_image_get_height(image: *const heif_image, channel: c_int) -> c_int;
    pub(super) fn heif_image_get_plane_readonly(
        image: *const heif_image,
        channel: c_int,
        stride: *mut c_int,
    ) -> *const u8;
}
