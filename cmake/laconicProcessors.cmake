# One program for all processors: it has the code of several levels of x86-64 inside and runs the best that the
# processor has (processors.cpp.in). The objects of a level become one object whose only global name is its `main`:
# otherwise the linker would keep one copy of an inline function of the standard library, or of Eigen's, for all levels,
# and a processor could meet instructions that it lacks. Constructors of static objects run for the chosen level alone.
set(laconic_levels x86-64-v2 x86-64-v3 x86-64-v4)

# Says whether this system can do it: GNU's linker and objcopy, whatever the compiler is, and one kind of build.
find_program(LACONIC_LD ld.bfd)
find_program(LACONIC_OBJCOPY objcopy)
mark_as_advanced(LACONIC_LD LACONIC_OBJCOPY)
set(laconic_can_choose_processor OFF)
if(CMAKE_SYSTEM_NAME STREQUAL Linux AND CMAKE_SYSTEM_PROCESSOR STREQUAL x86_64 AND LACONIC_LD AND LACONIC_OBJCOPY
   AND NOT CMAKE_CONFIGURATION_TYPES AND CMAKE_CXX_COMPILER_ID MATCHES "^(GNU|Clang)$")
  set(laconic_can_choose_processor ON)
endif()

# Compiles SOURCES at each level, as the objects ${name}_${level}.
function(laconic_objects_of_levels name)
  cmake_parse_arguments(PARSE_ARGV 1 of "" "" "SOURCES;DEFINITIONS;LIBRARIES")
  foreach(level IN LISTS laconic_levels)
    add_library(${name}_${level} OBJECT EXCLUDE_FROM_ALL ${of_SOURCES})
    laconic_program(${name}_${level})
    # Unique symbols would stay global.
    target_compile_options(${name}_${level} PRIVATE -march=${level} $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)
    target_compile_definitions(${name}_${level} PRIVATE ${of_DEFINITIONS})
    target_link_libraries(${name}_${level} PRIVATE ${of_LIBRARIES})
  endforeach()
endfunction()

# Makes `target` from the objects ${name}_${level} of each name in OBJECTS, at all levels.
function(laconic_choose_processor target)
  cmake_parse_arguments(PARSE_ARGV 1 of "" "" "OBJECTS")
  set(declared "")
  set(listed "")
  set(parts "")
  foreach(level IN LISTS laconic_levels)
    string(MAKE_C_IDENTIFIER ${level} id)
    set(objects "")
    foreach(name IN LISTS of_OBJECTS)
      list(APPEND objects $<TARGET_OBJECTS:${name}_${level}>)
    endforeach()
    set(part ${CMAKE_CURRENT_BINARY_DIR}/${target}_${level}.o)
    set(objects_file ${CMAKE_CURRENT_BINARY_DIR}/${target}_${level}.txt)
    file(GENERATE OUTPUT ${objects_file} CONTENT "\"$<JOIN:${objects},\"\n\">\"\n")
    add_custom_command(
      OUTPUT ${part}
      COMMAND ${LACONIC_LD} -r --force-group-allocation -o ${part} @${objects_file}
      COMMAND ${LACONIC_OBJCOPY} --redefine-sym main=main_${id} --keep-global-symbol=main_${id}
              --rename-section .init_array=init_${id} ${part}
      DEPENDS ${objects} ${objects_file}
      COMMENT "One object for ${level}: ${target}" VERBATIM COMMAND_EXPAND_LISTS)
    list(APPEND parts ${part})
    string(APPEND declared "LACONIC_DECLARE(${id})\n")
    string(APPEND listed "    LACONIC_LEVEL(${id}, \"${level}\"),\n")
  endforeach()
  configure_file(${PROJECT_SOURCE_DIR}/cmake/processors.cpp.in ${target}_processors.cpp @ONLY)
  add_executable(${target} ${CMAKE_CURRENT_BINARY_DIR}/${target}_processors.cpp ${parts})
  set_source_files_properties(${parts} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  foreach(level IN LISTS laconic_levels)
    foreach(name IN LISTS of_OBJECTS)
      add_dependencies(${target} ${name}_${level})
    endforeach()
  endforeach()
endfunction()
