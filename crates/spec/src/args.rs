//! Which program runs: the request's command and arguments against the image's entrypoint and command, by the
//! rules of Kubernetes' `command` and `args`.

use std::path::PathBuf;

use coracle_domain::{ContainerRequest, Refusal, Result};

use crate::ImageDefaults;

/// The program and its arguments. Refused if neither request nor image names one.
pub(crate) fn arguments(request: &ContainerRequest, image: &ImageDefaults) -> Result<Vec<String>> {
    let (program, rest): (&[String], &[String]) = match (request.command.as_slice(), request.args.as_slice()) {
        ([], []) => (entrypoint(image), &image.command),
        ([], args) => (entrypoint(image), args),
        // A command also drops the image's arguments, which were meant for another program.
        (command, args) => (command, args),
    };
    let arguments: Vec<String> = program.iter().chain(rest).cloned().collect();
    if arguments.is_empty() {
        let problem = format!("none is given, and image {:?} names neither entrypoint nor command", request.image.asked);
        return Err(Refusal::invalid("config.command", problem).into());
    }
    checked(arguments)
}

/// `arguments`, if the kernel can be given them.
pub(crate) fn checked(arguments: Vec<String>) -> Result<Vec<String>> {
    match arguments.iter().find(|argument| argument.contains('\0')) {
        Some(argument) => Err(Refusal::invalid("config.command", format!("{argument:?} contains a NUL byte")).into()),
        None => Ok(arguments),
    }
}

/// An entrypoint of one empty word is how some builders write "none".
fn entrypoint(image: &ImageDefaults) -> &[String] {
    match image.entrypoint.as_slice() {
        [only] if only.is_empty() => &[],
        words => words,
    }
}

/// Where the program starts. The request's must be absolute; the image's is taken as beneath the root.
pub(crate) fn working_directory(request: &ContainerRequest, image: &ImageDefaults) -> Result<PathBuf> {
    let directory = match &request.working_directory {
        Some(directory) if !directory.is_absolute() => {
            return Err(Refusal::invalid("config.working_dir", format!("{directory:?} is not absolute")).into());
        }
        Some(directory) => directory.clone(),
        None => PathBuf::from("/").join(&image.working_directory),
    };
    if directory.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Refusal::invalid("config.working_dir", format!("{directory:?} contains a NUL byte")).into());
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use coracle_domain::Error;

    use super::*;
    use crate::fixture;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd_as_kubernetes_says() {
        // image entrypoint, image cmd, command, args, what runs
        let matrix = [
            ("/entry a", "b c", "", "", "/entry a b c"),
            ("/entry a", "b c", "/bin/x", "", "/bin/x"),
            ("/entry a", "b c", "", "d", "/entry a d"),
            ("/entry a", "b c", "/bin/x", "d e", "/bin/x d e"),
            ("", "/cmd b", "", "", "/cmd b"),
            ("", "/cmd b", "", "/arg", "/arg"),
            ("/entry", "", "", "", "/entry"),
        ];
        for (entrypoint, cmd, command, args, expected) in matrix {
            let image = ImageDefaults { entrypoint: words(entrypoint), command: words(cmd), ..ImageDefaults::default() };
            let mut request = fixture::request();
            (request.command, request.args) = (words(command), words(args));
            assert_eq!(arguments(&request, &image).unwrap(), words(expected), "{entrypoint} | {cmd} | {command} | {args}");
        }
    }

    #[test]
    fn no_program_at_all_is_refused() {
        let mut request = fixture::request();
        request.command.clear();
        request.args.clear();
        for entrypoint in [vec![], vec![String::new()]] {
            let image = ImageDefaults { entrypoint, ..ImageDefaults::default() };
            let error = arguments(&request, &image).unwrap_err();
            assert!(matches!(error, Error::Refused(_)) && error.to_string().contains("registry.test/app:1"), "{error}");
        }
    }

    #[test]
    fn an_argument_with_a_nul_byte_is_refused() {
        let mut request = fixture::request();
        request.args = vec!["a\0b".to_owned()];
        assert!(arguments(&request, &ImageDefaults::default()).is_err());
    }

    #[test]
    fn the_requests_directory_wins_and_the_images_is_beneath_the_root() {
        let mut request = fixture::request();
        let image = ImageDefaults { working_directory: "srv/app".to_owned(), ..ImageDefaults::default() };
        assert_eq!(working_directory(&request, &image).unwrap(), Path::new("/srv/app"));
        assert_eq!(working_directory(&request, &ImageDefaults::default()).unwrap(), Path::new("/"));
        request.working_directory = Some("/work".into());
        assert_eq!(working_directory(&request, &image).unwrap(), Path::new("/work"));
        request.working_directory = Some("work".into());
        assert!(working_directory(&request, &image).is_err());
    }
}
