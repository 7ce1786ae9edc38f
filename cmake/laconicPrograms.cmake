# For laconic's own programs, never for its users: every warning is an error, and the code fits this machine.
# (`cmake --compile-no-warning-as-error` lets warnings pass, for compilers newer than those tested here.)
function(laconic_program target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow)
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC 12 warns falsely of its own headers: AVX-512 intrinsics (bug 105593) and string concatenation (bug 105651).
    target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized -Wno-uninitialized -Wno-restrict)
  endif()
  set_target_properties(${target} PROPERTIES COMPILE_WARNING_AS_ERROR ON CXX_EXTENSIONS OFF)
  if(LACONIC_NATIVE)
    target_compile_options(${target} PRIVATE -march=native)
  endif()
endfunction()

# For what calls kernels, which are compiled elsewhere: -O2 takes a fifth less time to compile than -O3. GCC collects
# its garbage sooner, so that no source takes more than 1.5 GB.
function(laconic_calls_kernels target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O2>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(${target} PRIVATE --param=ggc-min-expand=40)
  endif()
endfunction()
