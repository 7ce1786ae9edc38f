# What laconic's targets need, found in the same way when laconic is built and when it is used after its installation.
# Each `laconic_find_*(OUT)` sets OUT to "", or to what is missing. A target that exists already is taken as it is.
include_guard(GLOBAL)

# A package that brings its own CMake file. Versions are compared here: those files promise their own major version
# only.
function(laconic_find_package out target package version)
  set(missing "")
  if(NOT TARGET ${target})
    find_package(${package} CONFIG QUIET)
    if(NOT TARGET ${target})
      set(missing "${package} ${version} or newer (target ${target})")
    elseif(${package}_VERSION VERSION_LESS version)
      set(missing "${package} ${version} or newer, ${${package}_VERSION} found")
    endif()
  endif()
  set(${out} "${missing}" PARENT_SCOPE)
endfunction()

# A library that may come with a CMake file (its kinds of build in ARGN), or as header and library alone.
function(laconic_find_library out target package header library)
  foreach(kind IN LISTS ARGN ITEMS "")
    if(NOT TARGET ${target})
      find_package(${package} CONFIG QUIET COMPONENTS ${kind})
    endif()
  endforeach()
  set(missing "")
  if(NOT TARGET ${target})
    find_path(LACONIC_${package}_INCLUDE_DIR ${header} PATH_SUFFIXES ${package})
    find_library(LACONIC_${package}_LIBRARY ${library})
    mark_as_advanced(LACONIC_${package}_INCLUDE_DIR LACONIC_${package}_LIBRARY)
    if(LACONIC_${package}_INCLUDE_DIR AND LACONIC_${package}_LIBRARY)
      add_library(${target} UNKNOWN IMPORTED)
      set_target_properties(${target} PROPERTIES IMPORTED_LOCATION "${LACONIC_${package}_LIBRARY}"
                                                 INTERFACE_INCLUDE_DIRECTORIES "${LACONIC_${package}_INCLUDE_DIR}")
    else()
      set(missing "${library} (${header})")
    endif()
  endif()
  set(${out} "${missing}" PARENT_SCOPE)
endfunction()

function(laconic_find_core out)
  laconic_find_package(eigen Eigen3::Eigen Eigen3 3.4)
  laconic_find_package(xsimd xsimd xsimd 8.1)
  # Debian's xsimd names a library xtl that it neither needs nor brings: it would end as -lxtl on the link line.
  if(TARGET xsimd AND NOT TARGET xtl)
    get_target_property(libraries xsimd INTERFACE_LINK_LIBRARIES)
    if(libraries)
      list(REMOVE_ITEM libraries xtl)
      set_property(TARGET xsimd PROPERTY INTERFACE_LINK_LIBRARIES "${libraries}")
    endif()
  endif()
  find_package(OpenMP QUIET COMPONENTS CXX)  # optional: without it everything runs on one thread
  set(missing ${eigen} ${xsimd})
  list(JOIN missing ", and " missing)
  set(${out} "${missing}" PARENT_SCOPE)
endfunction()

function(laconic_find_io out)
  laconic_find_package(missing nlohmann_json::nlohmann_json nlohmann_json 3.9)
  set(${out} "${missing}" PARENT_SCOPE)
endfunction()

# What speech needs beyond io.
function(laconic_find_speech out)
  laconic_find_library(sndfile SndFile::sndfile SndFile sndfile.h sndfile)
  laconic_find_library(samplerate SampleRate::samplerate SampleRate samplerate.h samplerate)
  laconic_find_library(kissfft kissfft::kissfft-float kissfft kiss_fftr.h kissfft-float SHARED STATIC)
  set(missing ${sndfile} ${samplerate} ${kissfft})
  list(JOIN missing ", and " missing)
  set(${out} "${missing}" PARENT_SCOPE)
endfunction()
